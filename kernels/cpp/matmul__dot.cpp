// C = A @ B in f32, row-major: A is M x K, B is K x N.
// Dot-product form: a slab of TN columns of B is transposed on the fly, then every element of C is a dot product of two
// contiguous rows; MR x NR of them run side by side, each with UK vectors along k.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long STEP = UK * LANES;

static inline long smaller(long a, long b) { return a < b ? a : b; }

static inline float total(vec v) {
    float sum = 0.0f;
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) sum += v[l];
    return sum;
}

// ROWS x COLS dot products of length `depth`; rows of A and of the slab lie `depth` apart.
template <int ROWS, int COLS>
static inline void dots(const float* __restrict a, const float* __restrict t, float* __restrict c, long depth, long n) {
    vec sum[ROWS][COLS][UK];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < COLS; ++s)
#pragma GCC unroll 4
            for (int u = 0; u < UK; ++u) sum[r][s][u] = vec{};
    long k = 0;
    for (; k + STEP <= depth; k += STEP) {
#pragma GCC unroll 4
        for (int u = 0; u < UK; ++u)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const vec left = *(const vec*)(a + r * depth + k + u * LANES);
#pragma GCC unroll 4
                for (int s = 0; s < COLS; ++s) sum[r][s][u] += left * *(const vec*)(t + s * depth + k + u * LANES);
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < COLS; ++s) {
            vec all = sum[r][s][0];
#pragma GCC unroll 4
            for (int u = 1; u < UK; ++u) all += sum[r][s][u];
            float dot = total(all);
            for (long rest = k; rest < depth; ++rest) dot += a[r * depth + rest] * t[s * depth + rest];
            c[r * n + s] = dot;
        }
}

template <int ROWS>
static inline void strip(const float* a, const float* slab, float* c, long depth, long n, long width) {
    long j = 0;
    for (; j + NR <= width; j += NR) dots<ROWS, NR>(a, slab + j * depth, c + j, depth, n);
    for (; j < width; ++j) dots<ROWS, 1>(a, slab + j * depth, c + j, depth, n);
}

static void transpose(const float* __restrict b, float* __restrict slab, long depth, long n, long width) {
    for (long k0 = 0; k0 < depth; k0 += 16)
        for (long j = 0; j < width; ++j)
            for (long k = k0; k < smaller(k0 + 16, depth); ++k) slab[j * depth + k] = b[k * n + j];
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long m = sizes[0], n = sizes[1], depth = sizes[2];
    const float* a = (const float*)buffers[0];
    const float* b = (const float*)buffers[1];
    float* c = (float*)buffers[2];
#pragma omp parallel num_threads(THREADS)
    {
        float* slab = (float*)__builtin_malloc(smaller(TN, n) * depth * 4);
#pragma omp for schedule(static)
        for (long j = 0; j < n; j += TN) {
            const long width = smaller(TN, n - j);
            transpose(b + j, slab, depth, n, width);
            long i = 0;
            for (; i + MR <= m; i += MR) strip<MR>(a + i * depth, slab, c + i * n + j, depth, n, width);
            for (; i < m; ++i) strip<1>(a + i * depth, slab, c + i * n + j, depth, n, width);
        }
        __builtin_free(slab);
    }
}
