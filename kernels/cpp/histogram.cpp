// Counts N keys in BINS bins.
// This form: COPIES private tables per thread, so that equal neighbours do not wait for each other; merged at the end.

static constexpr int STEP = COPIES * UNROLL;
static constexpr long CHUNK = 32768;

static inline int& slot(int* table, long bins, int copy, int key) {
    return INTERLEAVED ? table[(long)key * COPIES + copy] : table[copy * bins + key];
}

static void count(const int* keys, long n, long bins, int* table) {
    long i = 0;
    for (; i + STEP <= n; i += STEP) {
#pragma GCC unroll 64
        for (int j = 0; j < STEP; j++) slot(table, bins, j % COPIES, keys[i + j])++;
    }
    for (; i < n; i++) slot(table, bins, 0, keys[i])++;
}

static inline int total(int* table, long bins, long k) {
    int sum = 0;
    for (int copy = 0; copy < COPIES; copy++) sum += slot(table, bins, copy, (int)k);
    return sum;
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const int* keys = (const int*)buffers[0];
    int* out = (int*)buffers[1];
    const long n = sizes[0], bins = sizes[1], size = bins * COPIES, chunks = (n + CHUNK - 1) / CHUNK;
    int* tables = (int*)__builtin_calloc(size * THREADS, sizeof(int));
    if (MERGE == 2) __builtin_memset(out, 0, bins * sizeof(int));
    // Chunks of keys: an even share each, or whoever is free takes the next.
#pragma omp parallel num_threads(THREADS)
    {
        int* mine = nullptr;
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) mine = tables + t * size;
        if constexpr (DYNAMIC) {
#pragma omp for schedule(dynamic)
            for (long c = 0; c < chunks; c++)
                count(keys + c * CHUNK, n - c * CHUNK < CHUNK ? n - c * CHUNK : CHUNK, bins, mine);
        } else {
#pragma omp for schedule(static)
            for (int t = 0; t < THREADS; t++) {
                const long from = n * t / THREADS;
                count(keys + from, n * (t + 1) / THREADS - from, bins, mine);
            }
        }
        // Merged by one thread, by all (a share of the bins each), or by each adding its own tables atomically.
        if constexpr (MERGE == 0) {
#pragma omp single
            for (long k = 0; k < bins; k++) {
                int sum = 0;
                for (int t = 0; t < THREADS; t++) sum += total(tables + t * size, bins, k);
                out[k] = sum;
            }
        } else if constexpr (MERGE == 1) {
#pragma omp for schedule(static)
            for (long k = 0; k < bins; k++) {
                int sum = 0;
                for (int t = 0; t < THREADS; t++) sum += total(tables + t * size, bins, k);
                out[k] = sum;
            }
        } else if (mine) {
            for (long k = 0; k < bins; k++) __atomic_fetch_add(out + k, total(mine, bins, k), __ATOMIC_RELAXED);
        }
    }
    __builtin_free(tables);
}
