// The sum, the largest entry and the sum of squares of each row of a ROWS x COLS matrix.
// This form: plain loops over ACCUMULATORS partial results, all three statistics in one pass or in three.

static constexpr float LOWEST = -3.4e38f;
static constexpr long SEGMENT = 16384;  // what one thread sums at full precision of its accumulators

template <bool wide>
struct Choice {
    typedef float type;
};
template <>
struct Choice<true> {
    typedef double type;
};
typedef Choice<DOUBLE == 1>::type number;

struct Stats {
    double sum = 0.0, squares = 0.0;
    float largest = LOWEST;
    void join(const Stats& other) {
        sum += other.sum, squares += other.squares;
        largest = largest > other.largest ? largest : other.largest;
    }
};

template <bool WANT_SUM, bool WANT_MAX, bool WANT_SQUARES>
static void pass(const float* x, long n, Stats& stats) {
    constexpr int A = ACCUMULATORS;
    number sum[A] = {}, squares[A] = {};
    float largest[A];
    for (int a = 0; a < A; a++) largest[a] = LOWEST;
    long i = 0;
    for (; i + A <= n; i += A) {
#pragma GCC unroll 16
        for (int a = 0; a < A; a++) {
            const float v = x[i + a];
            if (WANT_SUM) sum[a] += v;
            if (WANT_MAX) largest[a] = largest[a] > v ? largest[a] : v;
            if (WANT_SQUARES) squares[a] += (number)v * v;
        }
    }
    for (; i < n; i++) {
        sum[0] += x[i], squares[0] += (number)x[i] * x[i];
        largest[0] = largest[0] > x[i] ? largest[0] : x[i];
    }
    for (int a = 0; a < A; a++) {
        if (WANT_SUM) stats.sum += sum[a];
        if (WANT_MAX) stats.largest = stats.largest > largest[a] ? stats.largest : largest[a];
        if (WANT_SQUARES) stats.squares += squares[a];
    }
}

static Stats reduce(const float* x, long n) {
    Stats stats;
    for (long i = 0; i < n; i += SEGMENT) {
        const long size = n - i < SEGMENT ? n - i : SEGMENT;
        if constexpr (FUSED) {
            pass<true, true, true>(x + i, size, stats);
        } else {
            pass<true, false, false>(x + i, size, stats);
            pass<false, true, false>(x + i, size, stats);
            pass<false, false, true>(x + i, size, stats);
        }
    }
    return stats;
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float *sum = (float*)buffers[1], *largest = (float*)buffers[2], *squares = (float*)buffers[3];
    const long rows = sizes[0], cols = sizes[1];
    if constexpr (SHARE == 0) {
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (long r = 0; r < rows; r++) {
            const Stats s = reduce(x + r * cols, cols);
            sum[r] = (float)s.sum, largest[r] = s.largest, squares[r] = (float)s.squares;
        }
        return;
    }
    // Thread t takes its share of the columns of every row.
    Stats* part = (Stats*)__builtin_malloc(sizeof(Stats) * rows * THREADS);
#pragma omp parallel num_threads(THREADS)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) {
            const long from = cols * t / THREADS, to = cols * (t + 1) / THREADS;
            for (long r = 0; r < rows; r++) part[t * rows + r] = reduce(x + r * cols + from, to - from);
        }
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) {
            Stats s = part[r];
            for (int t = 1; t < THREADS; t++) s.join(part[t * rows + r]);
            sum[r] = (float)s.sum, largest[r] = s.largest, squares[r] = (float)s.squares;
        }
    }
    __builtin_free(part);
}
