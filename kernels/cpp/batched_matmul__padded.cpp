// C[b] = A[b] @ B[b] in f32 for many small matrices: A is B x M x K, B is B x K x N, row-major.
// Padded form: each B is copied into zero-padded panels of whole vectors, so that no column needs a tail; rows of A
// past the end are read from the last one and dropped.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long NR = NV * LANES;

static inline long smaller(long a, long b) { return a < b ? a : b; }

static void pack(const float* __restrict b, float* __restrict panels, long depth, long n) {
    for (long j0 = 0; j0 < n; j0 += NR) {
        const long width = smaller(NR, n - j0);
        for (long k = 0; k < depth; ++k) {
            float* to = panels + j0 * depth + k * NR;
            for (long j = 0; j < width; ++j) to[j] = b[k * n + j0 + j];
            for (long j = width; j < NR; ++j) to[j] = 0.0f;
        }
    }
}

static inline void micro(const float* __restrict a, const float* __restrict panel, float* __restrict c, long depth,
                         long n, long rows, long width) {
    const float* row[MR];
    for (long r = 0; r < MR; ++r) row[r] = a + smaller(r, rows - 1) * depth;
    vec sum[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] = vec{};
    for (long k = 0; k < depth; ++k) {
        vec right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = *(const vec*)(panel + k * NR + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[r][v] += row[r][k] * right[v];
    }
    float tile[MR][NR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) *(vec*)(tile[r] + v * LANES) = sum[r][v];
    for (long r = 0; r < rows; ++r) __builtin_memcpy(c + r * n, tile[r], width * 4);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long batch = sizes[0], m = sizes[1], n = sizes[2], depth = sizes[3];
    const float* left = (const float*)buffers[0];
    const float* right = (const float*)buffers[1];
    float* out = (float*)buffers[2];
    // ROWS_OUTER: the MR rows of A stay near while all panels pass; otherwise one panel stays while all rows pass.
    const long outer = ROWS_OUTER ? m : n, outer_step = ROWS_OUTER ? MR : NR;
    const long inner = ROWS_OUTER ? n : m, inner_step = ROWS_OUTER ? NR : MR;
#pragma omp parallel num_threads(THREADS)
    {
        float* panels = (float*)__builtin_malloc((n + NR - 1) / NR * NR * depth * 4);
#pragma omp for schedule(dynamic, CHUNK)
        for (long t = 0; t < batch; ++t) {
            pack(right + t * depth * n, panels, depth, n);
            for (long o = 0; o < outer; o += outer_step)
                for (long x = 0; x < inner; x += inner_step) {
                    const long i = ROWS_OUTER ? o : x, j = ROWS_OUTER ? x : o;
                    micro(left + (t * m + i) * depth, panels + j * depth, out + (t * m + i) * n + j, depth, n,
                          smaller(MR, m - i), smaller(NR, n - j));
                }
        }
        __builtin_free(panels);
    }
}
