// What candle asks of cuBLAS and cuRAND when it opens a device, beside the emulated driver, and cuBLAS's product of f32 matrices. Every
// other function is one of the stubs that the build adds, and fails.
#ifdef ADW_LIBRARY_cublas
int cublasCreate_v2(void **handle) { return *handle = handle, 0; }
int cublasDestroy_v2(void *handle) { return (void)handle, 0; }
int cublasSetStream_v2(void *handle, void *stream) { return (void)handle, (void)stream, 0; }

// C = alpha op(A) op(B) + beta C for every matrix of a batch, by columns: op(A) is m x k, op(B) k x n. Operations: 0 none, 1 transposed.
int cublasGemmStridedBatchedEx(void *handle, int op_a, int op_b, int m, int n, int k, const float *alpha, const float *a, int type_a, int lda,
                               long long stride_a, const float *b, int type_b, int ldb, long long stride_b, const float *beta, float *c,
                               int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm) {
    enum { F32 = 0, NOT_SUPPORTED = 15 };
    (void)handle, (void)compute, (void)algorithm;
    if (type_a != F32 || type_b != F32 || type_c != F32) return NOT_SUPPORTED;
    for (; batch > 0; batch--, a += stride_a, b += stride_b, c += stride_c) {
        for (long j = 0; j < n; j++) {
            for (long i = 0; i < m; i++) {
                double sum = 0;
                for (long l = 0; l < k; l++) sum += (double)a[op_a ? l + i * lda : i + l * lda] * b[op_b ? j + l * ldb : l + j * ldb];
                float *to = &c[i + j * ldc];
                *to = (float)(*alpha * sum + (*beta ? *beta * *to : 0));
            }
        }
    }
    return 0;
}
#endif
#ifdef ADW_LIBRARY_curand
int curandCreateGenerator(void **generator, int kind) { return (void)kind, *generator = generator, 0; }
int curandDestroyGenerator(void *generator) { return (void)generator, 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return (void)generator, (void)seed, 0;
}
int curandSetStream(void *generator, void *stream) { return (void)generator, (void)stream, 0; }
#endif
