// What candle asks of cuBLAS and cuRAND when it opens a device, beside the emulated driver. Networks here use neither:
// their products fail.
int cublasCreate_v2(void **handle) { return *handle = handle, 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int cublasDgemmStridedBatched(void) { return 15; }
int cublasGemmStridedBatchedEx(void) { return 15; }
int curandCreateGenerator(void **generator, int kind) { return *generator = generator, 0; }
int curandDestroyGenerator(void *generator) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }
int curandGenerateUniform(void) { return 201; }
int curandGenerateUniformDouble(void) { return 201; }
int curandGenerateNormal(void) { return 201; }
int curandGenerateNormalDouble(void) { return 201; }
