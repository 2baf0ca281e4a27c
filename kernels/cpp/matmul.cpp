// C = A @ B in f32, row-major: A is M x K, B is K x N.
// Plain form: MR x (NV vectors) of C stay in registers while a K-block of A and B streams past, nothing is copied.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr long NR = NV * LANES;

static inline long smaller(long a, long b) { return a < b ? a : b; }

// ROWS x (VECS vectors) of C over k in [0, depth); `fresh` starts from zero instead of what C holds.
template <int ROWS, int VECS>
static inline void block(const float* __restrict a, const float* __restrict b, float* __restrict c, long depth, long lda,
                         long n, bool fresh) {
    vec sum[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) sum[r][v] = fresh ? vec{} : *(const vec*)(c + r * n + v * LANES);
    for (long k = 0; k < depth; ++k) {
        vec right[VECS];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) right[v] = *(const vec*)(b + k * n + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; ++v) sum[r][v] += a[r * lda + k] * right[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; ++v) *(vec*)(c + r * n + v * LANES) = sum[r][v];
}

// Fewer columns than a vector: one column at a time, a scalar sum per row.
template <int ROWS>
static void narrow(const float* __restrict a, const float* __restrict b, float* __restrict c, long depth, long lda,
                   long n, long width, bool fresh) {
    for (long j = 0; j < width; ++j) {
        float sum[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[r] = fresh ? 0.0f : c[r * n + j];
        for (long k = 0; k < depth; ++k)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[r] += a[r * lda + k] * b[k * n + j];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) c[r * n + j] = sum[r];
    }
}

template <int ROWS>
static inline void columns(const float* a, const float* b, float* c, long depth, long lda, long n, long width,
                           bool fresh) {
    long j = 0;
    if (width == NR) {
        block<ROWS, NV>(a, b, c, depth, lda, n, fresh);
        return;
    }
    for (; j + LANES <= width; j += LANES) block<ROWS, 1>(a, b + j, c + j, depth, lda, n, fresh);
    narrow<ROWS>(a, b + j, c + j, depth, lda, n, width - j, fresh);
}

static inline void panel(const float* a, const float* b, float* c, long rows, long depth, long lda, long n, long width,
                         bool fresh) {
    if (rows == MR) {
        columns<MR>(a, b, c, depth, lda, n, width, fresh);
        return;
    }
    for (long r = 0; r < rows; ++r) columns<1>(a + r * lda, b, c + r * n, depth, lda, n, width, fresh);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const long m = sizes[0], n = sizes[1], depth = sizes[2];
    const float* a = (const float*)buffers[0];
    const float* b = (const float*)buffers[1];
    float* c = (float*)buffers[2];
    // COLUMNS_FIRST: each thread owns column panels and walks down the rows; otherwise the other way round.
    const long outer = COLUMNS_FIRST ? n : m, outer_step = COLUMNS_FIRST ? NR : MR;
    const long inner = COLUMNS_FIRST ? m : n, inner_step = COLUMNS_FIRST ? MR : NR;
#pragma omp parallel for num_threads(THREADS) schedule(static)
    for (long o = 0; o < outer; o += outer_step)
        for (long k = 0; k < depth; k += KC)
            for (long x = 0; x < inner; x += inner_step) {
                const long i = COLUMNS_FIRST ? x : o, j = COLUMNS_FIRST ? o : x;
                panel(a + i * depth + k, b + k * n + j, c + i * n + j, smaller(MR, m - i), smaller(KC, depth - k),
                      depth, n, smaller(NR, n - j), k == 0);
            }
}
