// C[b] = A[b] @ B[b] in f32 for many small matrices: A is B x M x K, B is B x K x N, row-major.
// Plain form: whole matrices go to threads, and MR x (NV vectors) of one C stay in registers over the full sum.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

template <int ROWS, int VECS>
static inline void block(const float* __restrict a, const float* __restrict b, float* __restrict c, long depth, long n) {
    vec sum[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[r][v] = vec{};
    for (long k = 0; k < depth; ++k) {
        vec right[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) right[v] = *(const vec*)(b + k * n + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; ++v) sum[r][v] += a[r * depth + k] * right[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) *(vec*)(c + r * n + v * LANES) = sum[r][v];
}

template <int ROWS>
static inline void narrow(const float* __restrict a, const float* __restrict b, float* __restrict c, long depth, long n,
                          long width) {
    for (long j = 0; j < width; ++j) {
        float sum[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[r] = 0.0f;
        for (long k = 0; k < depth; ++k)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[r] += a[r * depth + k] * b[k * n + j];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) c[r * n + j] = sum[r];
    }
}

template <int ROWS>
static inline void rows(const float* a, const float* b, float* c, long depth, long n) {
    long j = 0;
    for (; j + NV * LANES <= n; j += NV * LANES) block<ROWS, NV>(a, b + j, c + j, depth, n);
    for (; j + LANES <= n; j += LANES) block<ROWS, 1>(a, b + j, c + j, depth, n);
    if (j == n) return;
    // OVERLAP: the last vector steps back over columns that are done already, instead of scalar sums.
    if (OVERLAP && n >= LANES)
        block<ROWS, 1>(a, b + n - LANES, c + n - LANES, depth, n);
    else
        narrow<ROWS>(a, b + j, c + j, depth, n, n - j);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long batch = sizes[0], m = sizes[1], n = sizes[2], depth = sizes[3];
    const float* left = (const float*)buffers[0];
    const float* right = (const float*)buffers[1];
    float* out = (float*)buffers[2];
#pragma omp parallel for num_threads(THREADS) schedule(dynamic, CHUNK)
    for (long t = 0; t < batch; ++t) {
        const float* a = left + t * m * depth;
        const float* b = right + t * depth * n;
        float* c = out + t * m * n;
        long i = 0;
        for (; i + MR <= m; i += MR) rows<MR>(a + i * depth, b, c + i * n, depth, n);
        for (; i < m; ++i) rows<1>(a + i * depth, b, c + i * n, depth, n);
    }
}
