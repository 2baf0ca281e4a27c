// C[b] = A[b] @ B[b] in f32 for many small matrices: A is B x M x K, B is B x K x N, row-major.
// Interleaved form: LANES matrices are woven together, one per vector lane, so that every size of matrix fills the
// vectors; MR x NR elements of C (of all LANES matrices at once) stay in registers.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline long smaller(long a, long b) { return a < b ? a : b; }

// woven[e] holds element e of `count` matrices of `size` elements each; missing lanes repeat the last matrix.
static void weave(const float* __restrict from, float* __restrict woven, long size, long count) {
    for (long l = 0; l < LANES; ++l) {
        const float* matrix = from + smaller(l, count - 1) * size;
        for (long e = 0; e < size; ++e) woven[e * LANES + l] = matrix[e];
    }
}

static void unweave(const float* __restrict woven, float* __restrict to, long size, long count) {
    for (long l = 0; l < count; ++l)
        for (long e = 0; e < size; ++e) to[l * size + e] = woven[e * LANES + l];
}

static inline vec left_element(const float* a, long e, long size, long count) {
    if (WEAVE_A) return *(const vec*)(a + e * LANES);
    vec gathered;
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) gathered[l] = a[smaller(l, count - 1) * size + e];
    return gathered;
}

static inline void put(float* c, vec sum, long e, long size, long count) {
    if (WEAVE_C)
        *(vec*)(c + e * LANES) = sum;
    else
        for (long l = 0; l < count; ++l) c[l * size + e] = sum[l];
}

template <int ROWS, int COLS>
static inline void block(const float* __restrict a, const float* __restrict b, float* __restrict c, long i, long j,
                         long m, long n, long depth, long count) {
    vec sum[ROWS][COLS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < COLS; ++s) sum[r][s] = vec{};
    for (long k = 0; k < depth; ++k) {
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const vec x = left_element(a, (i + r) * depth + k, m * depth, count);
#pragma GCC unroll 4
            for (int s = 0; s < COLS; ++s) sum[r][s] += x * *(const vec*)(b + (k * n + j + s) * LANES);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < COLS; ++s) put(c, sum[r][s], (i + r) * n + j + s, m * n, count);
}

template <int ROWS>
static inline void rows(const float* a, const float* b, float* c, long i, long m, long n, long depth, long count) {
    long j = 0;
    for (; j + NR <= n; j += NR) block<ROWS, NR>(a, b, c, i, j, m, n, depth, count);
    for (; j < n; ++j) block<ROWS, 1>(a, b, c, i, j, m, n, depth, count);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long batch = sizes[0], m = sizes[1], n = sizes[2], depth = sizes[3];
    const float* left = (const float*)buffers[0];
    const float* right = (const float*)buffers[1];
    float* out = (float*)buffers[2];
#pragma omp parallel num_threads(THREADS)
    {
        float* scratch = (float*)__builtin_malloc((m * depth + depth * n + m * n) * LANES * 4);
        float* woven_b = scratch + m * depth * LANES;
        float* woven_c = woven_b + depth * n * LANES;
#pragma omp for schedule(static)
        for (long t = 0; t < batch; t += LANES) {
            const long count = smaller(LANES, batch - t);
            const float* a = left + t * m * depth;
            if (WEAVE_A) weave(a, scratch, m * depth, count);
            weave(right + t * depth * n, woven_b, depth * n, count);
            float* c = WEAVE_C ? woven_c : out + t * m * n;
            long i = 0;
            for (; i + MR <= m; i += MR) rows<MR>(WEAVE_A ? scratch : a, woven_b, c, i, m, n, depth, count);
            for (; i < m; ++i) rows<1>(WEAVE_A ? scratch : a, woven_b, c, i, m, n, depth, count);
            if (WEAVE_C) unweave(woven_c, out + t * m * n, m * n, count);
        }
        __builtin_free(scratch);
    }
}
