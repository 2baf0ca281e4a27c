// Counts N keys in BINS bins.
// This form: keys wait in PARTS small queues by range of bins, and are counted SLOTS at a time, for locality.

struct Queues {
    int keys[PARTS][SLOTS];
    int fill[PARTS];
};

// The keys of one queue into COPIES tables in turn.
static inline void drain(const int* keys, int n, int* table, long bins) {
    for (int i = 0; i < n; i++) table[(i % COPIES) * bins + keys[i]]++;
}

static void count(const int* keys, long n, long bins, int* table) {
    Queues queues;
    for (int p = 0; p < PARTS; p++) queues.fill[p] = 0;
    int shift = 0;  // a part is a run of 2^shift bins
    while (((bins - 1) >> shift) >= PARTS) shift++;
    for (long i = 0; i < n; i++) {
        const int key = keys[i], p = key >> shift;
        if constexpr (BRANCH) {
            if (queues.fill[p] == SLOTS) {
                drain(queues.keys[p], SLOTS, table, bins);
                queues.fill[p] = 0;
            }
            queues.keys[p][queues.fill[p]++] = key;
        } else {  // a ring: what falls out of the far end is counted, once the ring is full
            int& at = queues.fill[p];
            int& slot = queues.keys[p][at & (SLOTS - 1)];
            if (__builtin_expect(at >= SLOTS, 1)) table[(at % COPIES) * bins + slot]++;
            slot = key;
            at = at + 1 == 2 * SLOTS ? SLOTS : at + 1;
        }
    }
    for (int p = 0; p < PARTS; p++)
        drain(queues.keys[p], queues.fill[p] < SLOTS ? queues.fill[p] : SLOTS, table, bins);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const int* keys = (const int*)buffers[0];
    int* out = (int*)buffers[1];
    const long n = sizes[0], bins = sizes[1], size = bins * COPIES;
    int* tables = (int*)__builtin_calloc(size * THREADS, sizeof(int));
#pragma omp parallel num_threads(THREADS)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < THREADS; t++) {
            const long from = n * t / THREADS;
            count(keys + from, n * (t + 1) / THREADS - from, bins, tables + t * size);
        }
        // Merged by one thread, or by all (a share of the bins each).
#pragma omp for schedule(static)
        for (int t = 0; t < (MERGE ? THREADS : 1); t++) {
            const long from = MERGE ? bins * t / THREADS : 0, to = MERGE ? bins * (t + 1) / THREADS : bins;
            for (long k = from; k < to; k++) {
                int sum = 0;
                for (int copy = 0; copy < COPIES * THREADS; copy++) sum += tables[copy * bins + k];
                out[k] = sum;
            }
        }
    }
    __builtin_free(tables);
}
