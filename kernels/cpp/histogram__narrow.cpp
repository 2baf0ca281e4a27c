// Counts N keys in BINS bins.
// This form: tables of narrow counters, which stay in a smaller cache; a counter that wraps carries into a wide one.

template <int bits>
struct Choice {
    typedef unsigned char type;
};
template <>
struct Choice<16> {
    typedef unsigned short type;
};
template <>
struct Choice<32> {
    typedef unsigned int type;
};
typedef Choice<COUNTER_BITS>::type counter;

static constexpr int STEP = 2 * COPIES * UNROLL;  // even, so that keys can be read in pairs

static inline void add(counter* narrow, int* wide, int key) {
    if (++narrow[key] == 0 && COUNTER_BITS < 32) wide[key] += 1 << (COUNTER_BITS % 32);
}

static void count(const int* keys, long n, long bins, counter* narrow, int* wide) {
    long i = 0;
    for (; i + STEP <= n; i += STEP) {
#pragma GCC unroll 64
        for (int j = 0; j < STEP; j += 2) {
            int first = keys[i + j], second = keys[i + j + 1];
            if constexpr (PAIRS) {
                unsigned long pair;
                __builtin_memcpy(&pair, keys + i + j, sizeof pair);
                first = (int)pair, second = (int)(pair >> 32);
            }
            add(narrow + j % COPIES * bins, wide, first);
            add(narrow + (j + 1) % COPIES * bins, wide, second);
        }
    }
    for (; i < n; i++) add(narrow, wide, keys[i]);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const int* keys = (const int*)buffers[0];
    int* out = (int*)buffers[1];
    const long n = sizes[0], bins = sizes[1], size = bins * COPIES;
    counter* narrow = (counter*)__builtin_calloc(size * THREADS, sizeof(counter));
    int* wide = (int*)__builtin_calloc(bins * THREADS, sizeof(int));
#pragma omp parallel num_threads(THREADS)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) {
            const long from = n * t / THREADS;
            count(keys + from, n * (t + 1) / THREADS - from, bins, narrow + t * size, wide + t * bins);
        }
        // Merged by one thread, or by all (a share of the bins each).
#pragma omp for schedule(static)
        for (int t = 0; t < (MERGE ? THREADS : 1); t++) {
            const long from = MERGE ? bins * t / THREADS : 0, to = MERGE ? bins * (t + 1) / THREADS : bins;
            for (long k = from; k < to; k++) {
                int sum = 0;
                for (int copy = 0; copy < COPIES * THREADS; copy++) sum += (int)narrow[copy * bins + k];
                for (int u = 0; u < THREADS; u++) sum += wide[u * bins + k];
                out[k] = sum;
            }
        }
    }
    __builtin_free(wide);
    __builtin_free(narrow);
}
