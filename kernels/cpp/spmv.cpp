// y = A x for a sparse A of ROWS rows in compressed form.
// A row is summed in LANES partial sums; TOGETHER rows advance side by side; SCHEDULE says how threads share rows.

struct Matrix {
    const int* starts;
    const int* columns;
    const float* values;
    const float* x;
};

static inline long lower(long a, long b) { return a < b ? a : b; }

// Entries i ... i + LANES - 1 into the partial sums.
static inline void absorb(const Matrix& a, long i, float* sum) {
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

static void range(const Matrix& a, long first, long last, float* y) {
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
                      (const float*)buffers[3]};
    float* y = (float*)buffers[4];
    const long count = sizes[0];
    if constexpr (SCHEDULE == 0) {  // as many rows each
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (int t = 0; t < THREADS; t++) range(a, count * t / THREADS, count * (t + 1) / THREADS, y);
    } else if constexpr (SCHEDULE == 1) {  // whoever is free takes the next 64
#pragma omp parallel for schedule(dynamic) num_threads(THREADS)
        for (long r = 0; r < count; r += 64) range(a, r, lower(r + 64, count), y);
    } else {  // as many entries each
        const long entries = a.starts[count];
#pragma omp parallel for schedule(static) num_threads(THREADS)
        for (int t = 0; t < THREADS; t++) {
            const long first = t == 0 ? 0 : row_of(a, count, entries * t / THREADS);
            const long last = t + 1 == THREADS ? count : row_of(a, count, entries * (t + 1) / THREADS);
            range(a, first, last, y);
        }
    }
}
