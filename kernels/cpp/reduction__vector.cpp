// The sum, the largest entry and the sum of squares of each row of a ROWS x COLS matrix.
// This form: vectors written out, UNROLL per row and TOGETHER rows at a time, fetching AHEAD floats in advance.

#define INLINE inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * VEC)));
typedef float loose __attribute__((vector_size(4 * VEC), aligned(4), may_alias));

static constexpr float LOWEST = -3.4e38f;
static constexpr long SEGMENT = 8192;  // summed in float; longer sums are taken in double

static INLINE vec load(const float* p) { return *(const loose*)p; }
static INLINE vec larger(vec a, vec b) { return a > b ? a : b; }

struct Stats {
    double sum = 0.0, squares = 0.0;
    float largest = LOWEST;
    void join(const Stats& other) {
        sum += other.sum, squares += other.squares;
        largest = largest > other.largest ? largest : other.largest;
    }
};

// n <= SEGMENT entries of R rows that lie `stride` apart.
template <int R>
static INLINE void segment(const float* x, long stride, long n, Stats* stats) {
    vec sum[R][UNROLL] = {}, squares[R][UNROLL] = {}, largest[R][UNROLL];
    for (int r = 0; r < R; r++)
        for (int u = 0; u < UNROLL; u++) largest[r][u] = LOWEST - vec{};
    const auto absorb = [&](long i, int u) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const float* p = x + r * stride + i;
            if (AHEAD) __builtin_prefetch(p + AHEAD);
            const vec v = load(p);
            sum[r][u] += v, squares[r][u] += v * v, largest[r][u] = larger(largest[r][u], v);
        }
    };
    long i = 0;
    for (; i + UNROLL * VEC <= n; i += UNROLL * VEC) {
#pragma GCC unroll 8
        for (int u = 0; u < UNROLL; u++) absorb(i + u * VEC, u);
    }
    for (; i + VEC <= n; i += VEC) absorb(i, 0);
    for (int r = 0; r < R; r++) {
        for (int u = 1; u < UNROLL; u++) {
            sum[r][0] += sum[r][u], squares[r][0] += squares[r][u];
            largest[r][0] = larger(largest[r][0], largest[r][u]);
        }
        float a = 0.0f, b = 0.0f, m = stats[r].largest;
        for (int l = 0; l < VEC && i > 0; l++) {
            a += sum[r][0][l], b += squares[r][0][l];
            m = m > largest[r][0][l] ? m : largest[r][0][l];
        }
        for (long j = i; j < n; j++) {
            const float v = x[r * stride + j];
            a += v, b += v * v, m = m > v ? m : v;
        }
        stats[r].sum += a, stats[r].squares += b, stats[r].largest = m;
    }
}

// Columns [from, to) of all rows, TOGETHER rows at a time; `stats` has one entry per row.
static void reduce(const float* x, long cols, long from, long to, long first, long last, Stats* stats) {
    for (long r = first; r < last; r += TOGETHER) {
        for (long i = from; i < to; i += SEGMENT) {
            const long n = to - i < SEGMENT ? to - i : SEGMENT;
            if (r + TOGETHER <= last) segment<TOGETHER>(x + r * cols + i, cols, n, stats + r);
            else for (long tail = r; tail < last; tail++) segment<1>(x + tail * cols + i, cols, n, stats + tail);
        }
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float *sum = (float*)buffers[1], *largest = (float*)buffers[2], *squares = (float*)buffers[3];
    const long rows = sizes[0], cols = sizes[1], copies = SHARE ? THREADS : 1;
    Stats* part = (Stats*)__builtin_malloc(sizeof(Stats) * rows * copies);
#pragma omp parallel num_threads(THREADS)
    {
        // Thread t takes its share of the rows (SHARE 0), or of the columns of every row (SHARE 1).
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) {
            const long first = SHARE ? 0 : rows * t / THREADS, last = SHARE ? rows : rows * (t + 1) / THREADS;
            const long from = SHARE ? cols * t / THREADS : 0, to = SHARE ? cols * (t + 1) / THREADS : cols;
            Stats* mine = part + (SHARE ? t * rows : 0);
            for (long r = first; r < last; r++) mine[r] = Stats();
            reduce(x, cols, from, to, first, last, mine);
        }
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            Stats s = part[r];
            for (long t = 1; t < copies; t++) s.join(part[t * rows + r]);
            sum[r] = (float)s.sum, largest[r] = s.largest, squares[r] = (float)s.squares;
        }
    }
    __builtin_free(part);
}
