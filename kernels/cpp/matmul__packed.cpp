// C = A @ B in f32, row-major: A is M x K, B is K x N.
// Packed form: each K-block of B is first copied into panels of NR columns (zero-padded), so that the micro-kernel
// reads B contiguously; with PACK_A the MR rows of A that it walks are interleaved too.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long NR = NV * LANES;

static inline long smaller(long a, long b) { return a < b ? a : b; }

// Adds rows x width of the product of one K-block to C; the panel is always NR wide, rows are clamped in the reads.
static inline void micro(const float* const* row, long stride, const float* __restrict panel, float* __restrict c,
                         long depth, long n, long rows, long width, bool fresh) {
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
            for (int v = 0; v < NV; ++v) sum[r][v] += row[r][k * stride] * right[v];
    }
    float spill[MR][NR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) *(vec*)(spill[r] + v * LANES) = sum[r][v];
    for (long r = 0; r < rows; ++r)
        if (fresh)
            for (long j = 0; j < width; ++j) c[r * n + j] = spill[r][j];
        else
            for (long j = 0; j < width; ++j) c[r * n + j] += spill[r][j];
}

static void pack_panel(const float* __restrict b, float* __restrict panel, long depth, long n, long width) {
    for (long k = 0; k < depth; ++k) {
        for (long j = 0; j < width; ++j) panel[k * NR + j] = b[k * n + j];
        for (long j = width; j < NR; ++j) panel[k * NR + j] = 0.0f;
    }
}

static void row_panel(const float* a, const float* packed, float* c, float* strip, long i, long k0, long m, long n,
                      long depth, long kc) {
    const long rows = smaller(MR, m - i);
    const float* row[MR];
    for (long r = 0; r < MR; ++r) row[r] = a + (i + smaller(r, rows - 1)) * depth + k0;
    if (PACK_A) {
        for (long k = 0; k < kc; ++k)
            for (long r = 0; r < MR; ++r) strip[k * MR + r] = row[r][k];
        for (long r = 0; r < MR; ++r) row[r] = strip + r;
    }
    for (long j = 0; j < n; j += NR)
        micro(row, PACK_A ? MR : 1, packed + j * kc, c + i * n + j, kc, n, rows, smaller(NR, n - j), k0 == 0);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long m = sizes[0], n = sizes[1], depth = sizes[2];
    const float* a = (const float*)buffers[0];
    const float* b = (const float*)buffers[1];
    float* c = (float*)buffers[2];
    const long block = smaller(KC, depth), padded = (n + NR - 1) / NR * NR;
    float* packed = (float*)__builtin_malloc(padded * block * 4);
#pragma omp parallel num_threads(THREADS)
    {
        float* strip = (float*)__builtin_malloc(block * MR * 4);
        for (long k = 0; k < depth; k += KC) {
            const long kc = smaller(KC, depth - k);
#pragma omp for schedule(static)
            for (long j = 0; j < n; j += NR) pack_panel(b + k * n + j, packed + j * kc, kc, n, smaller(NR, n - j));
#pragma omp for schedule(static)
            for (long i = 0; i < m; i += MR) row_panel(a, packed, c, strip, i, k, m, n, depth, kc);
        }
        __builtin_free(strip);
    }
    __builtin_free(packed);
}
