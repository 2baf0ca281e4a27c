// y = A x for a sparse A of ROWS rows in compressed form.
// A row is summed in LANES partial sums, TOGETHER rows side by side, or from a list of products (PRODUCTS 1) that
// ignores where rows end; SCHEDULE says how threads share rows.

struct Matrix {
    const int* starts;
    const int* columns;
    const float* values;
    const float* x;
    long entries;
};

static inline long lower(long a, long b) { return a < b ? a : b; }

// Asks for the entry of x that is needed PREFETCH entries later.
static inline void ahead(const Matrix& a, long i) {
    if (PREFETCH && i + PREFETCH < a.entries) __builtin_prefetch(a.x + a.columns[i + PREFETCH]);
}

// Entries i ... i + LANES - 1 into the partial sums.
static inline void absorb(const Matrix& a, long i, float* sum) {
    for (int l = 0; l < LANES && PREFETCH; l++) ahead(a, i + l);
    if constexpr (SIMD) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) sum[l] += a.values[i + l] * a.x[a.columns[i + l]];
    } else {
#pragma GCC unroll 16
        for (int l = 0; l < LANES; l++) sum[l] += a.values[i + l] * a.x[a.columns[i + l]];
    }
}

// Rows r ... r + N - 1: side by side as far as the shortest goes, then each to its end.
template <int N>
static inline void rows(const Matrix& a, long r, float* y) {
    float sum[N][LANES] = {};
    long at[N], common = a.starts[r + 1] - a.starts[r];
    for (int k = 0; k < N; k++) {
        at[k] = a.starts[r + k];
        common = lower(common, a.starts[r + k + 1] - at[k]);
    }
    if constexpr (N > 1) {
        for (long step = 0; step < common / LANES; step++) {
#pragma GCC unroll 4
            for (int k = 0; k < N; k++) absorb(a, at[k] + step * LANES, sum[k]);
        }
        for (int k = 0; k < N; k++) at[k] += common / LANES * LANES;
    }
#pragma GCC unroll 4
    for (int k = 0; k < N; k++) {
        const long end = a.starts[r + k + 1];
        long i = at[k];
        for (; i + LANES <= end; i += LANES) absorb(a, i, sum[k]);
        float all = 0.0f;
        for (; i < end; i++) all += a.values[i] * a.x[a.columns[i]];
        for (int l = 0; l < LANES; l++) all += sum[k][l];
        y[r + k] = all;
    }
}

static constexpr long LIST = 1024;

// Rows [first, last): first LIST products whatever their rows, then each row's share of them.
static void by_products(const Matrix& a, long first, long last, float* y) {
    float products[LIST], sum[LANES];
    long r = first;
    float carried = 0.0f;
    for (long from = a.starts[first]; from < a.starts[last] || r < last; from += LIST) {
        const long to = lower(from + LIST, a.starts[last]);
        if constexpr (SIMD) {
#pragma omp simd
            for (long i = from; i < to; i++) products[i - from] = a.values[i] * a.x[a.columns[i]];
        } else {
            for (long i = from; i < to; i++) products[i - from] = a.values[i] * a.x[a.columns[i]];
        }
        for (long i = to; i < to + PREFETCH; i++) ahead(a, i - PREFETCH);  // the head of the next list
        for (long i = from; r < last && i <= to;) {
            const long end = lower(a.starts[r + 1], to);
            for (int l = 0; l < LANES; l++) sum[l] = 0.0f;
            for (; i + LANES <= end; i += LANES) {
#pragma GCC unroll 16
                for (int l = 0; l < LANES; l++) sum[l] += products[i + l - from];
            }
            for (; i < end; i++) carried += products[i - from];
            for (int l = 0; l < LANES; l++) carried += sum[l];
            if (a.starts[r + 1] > to) break;  // the row goes on in the next list
            y[r++] = carried;
            carried = 0.0f;
        }
    }
}

static void range(const Matrix& a, long first, long last, float* y) {
    if constexpr (PRODUCTS) {
        by_products(a, first, last, y);
        return;
    }
    long r = first;
    for (; r + TOGETHER <= last; r += TOGETHER) rows<TOGETHER>(a, r, y);
    for (; r < last; r++) rows<1>(a, r, y);
}

// The first row that starts at or after entry `entry`.
static long row_of(const Matrix& a, long count, long entry) {
    long low = 0, high = count;
    while (low < high) {
        const long middle = (low + high) / 2;
        if (a.starts[middle] < entry) low = middle + 1;
        else high = middle;
    }
    return low;
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const Matrix a = {(const int*)buffers[0], (const int*)buffers[1], (const float*)buffers[2],
                      (const float*)buffers[3], ((const int*)buffers[0])[sizes[0]]};
    float* y = (float*)buffers[4];
    const long count = sizes[0];
    if constexpr (SCHEDULE == 0) {  // as many rows each
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (int t = 0; t < THREADS; t++) range(a, count * t / THREADS, count * (t + 1) / THREADS, y);
    } else if constexpr (SCHEDULE == 1) {  // whoever is free takes the next 64
#pragma omp parallel for schedule(dynamic) num_threads(THREADS)
        for (long r = 0; r < count; r += 64) range(a, r, lower(r + 64, count), y);
    } else {  // as many entries each
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (int t = 0; t < THREADS; t++) {
            const long first = t == 0 ? 0 : row_of(a, count, a.entries * t / THREADS);
            const long last = t + 1 == THREADS ? count : row_of(a, count, a.entries * (t + 1) / THREADS);
            range(a, first, last, y);
        }
    }
}
