// The sum, the largest entry and the sum of squares of each row of a ROWS x COLS matrix.
// This form: leaves of LEAF entries in WIDTH lanes, joined pairwise: by recursion, or by a binary counter of partials.

static constexpr float LOWEST = -3.4e38f;

struct Stats {
    float sum, squares, largest;
};

static inline Stats join(const Stats& a, const Stats& b) {
    return {a.sum + b.sum, a.squares + b.squares, a.largest > b.largest ? a.largest : b.largest};
}

static Stats leaf(const float* x, long n) {
    float sum[WIDTH], squares[WIDTH], largest[WIDTH];
    for (int l = 0; l < WIDTH; l++) sum[l] = squares[l] = 0.0f, largest[l] = LOWEST;
    long i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
#pragma omp simd
        for (int l = 0; l < WIDTH; l++) {
            const float v = x[i + l];
            sum[l] += v;
            squares[l] += v * v;
            largest[l] = largest[l] > v ? largest[l] : v;
        }
    }
    Stats stats = {0.0f, 0.0f, LOWEST};
    for (int l = 0; l < WIDTH && i > 0; l++) stats = join(stats, {sum[l], squares[l], largest[l]});
    for (; i < n; i++) stats = join(stats, {x[i], x[i] * x[i], x[i]});
    return stats;
}

static Stats recurse(const float* x, long n) {
    if (n <= LEAF) return leaf(x, n);
    const long half = (n / 2 + LEAF - 1) / LEAF * LEAF;
    return join(recurse(x, half), recurse(x + half, n - half));
}

// Slot k holds the join of 2^k leaves where bit k of the number of leaves seen is set.
static Stats count(const float* x, long n) {
    Stats slots[64];
    unsigned long seen = 0;
    for (long i = 0; i < n; i += LEAF, seen++) {
        Stats now = leaf(x + i, n - i < LEAF ? n - i : LEAF);
        int k = 0;
        for (; seen >> k & 1; k++) now = join(slots[k], now);
        slots[k] = now;
    }
    Stats all = {0.0f, 0.0f, LOWEST};
    for (int k = 0; seen >> k; k++)
        if (seen >> k & 1) all = join(slots[k], all);
    return all;
}

static Stats reduce(const float* x, long n) { return TREE ? recurse(x, n) : count(x, n); }

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float *sum = (float*)buffers[1], *largest = (float*)buffers[2], *squares = (float*)buffers[3];
    const long rows = sizes[0], cols = sizes[1];
    if constexpr (SHARE == 0) {
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (long r = 0; r < rows; r++) {
            const Stats s = reduce(x + r * cols, cols);
            sum[r] = s.sum, largest[r] = s.largest, squares[r] = s.squares;
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
            for (int t = 1; t < THREADS; t++) s = join(s, part[t * rows + r]);
            sum[r] = s.sum, largest[r] = s.largest, squares[r] = s.squares;
        }
    }
    __builtin_free(part);
}
