// What candle asks of cuBLAS and cuRAND when it opens a device, beside the emulated driver. Networks here use neither:
// every function that computes is one of the stubs that the build adds, and fails.
#ifdef ADW_LIBRARY_cublas
int cublasCreate_v2(void **handle) { return *handle = handle, 0; }
int cublasDestroy_v2(void *handle) { return (void)handle, 0; }
int cublasSetStream_v2(void *handle, void *stream) { return (void)handle, (void)stream, 0; }
#endif
#ifdef ADW_LIBRARY_curand
int curandCreateGenerator(void **generator, int kind) { return (void)kind, *generator = generator, 0; }
int curandDestroyGenerator(void *generator) { return (void)generator, 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return (void)generator, (void)seed, 0;
}
int curandSetStream(void *generator, void *stream) { return (void)generator, (void)stream, 0; }
#endif
