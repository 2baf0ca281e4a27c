// Inclusive prefix sum along each row of X (ROWS x COLS) in f32.
// Four algorithms: ALG 0 and 1 walk CHAINS whole rows side by side, ALG 2 and 3 cut each row into segments of SEGMENT
// values, sum them, and walk CHAINS segments side by side from their offsets. Even ones add value after value, odd ones
// scan a vector at a time by shifted additions.
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(LANES * 4)));

static inline long smaller(long a, long b) { return a < b ? a : b; }

// The vector moved up by BY lanes, with zeros below.
template <int BY>
static inline vec shifted(vec v) {
    ivec from;
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) from[l] = l < BY ? LANES + l : l - BY;
    return __builtin_shuffle(v, vec{}, from);
}

static inline vec scan_vector(vec v) {
    v += shifted<1>(v);
    v += shifted<2>(v);
    if constexpr (LANES > 4) v += shifted<4>(v);
    if constexpr (LANES > 8) v += shifted<8>(v);
    return v;
}

// WIDE sequences of `count` values, `apart` from each other, each continuing from its own carry.
template <int WIDE>
static inline void walk(const float* __restrict x, float* __restrict y, long apart, long count,
                        const float* __restrict start) {
    float carry[WIDE];
#pragma GCC unroll 8
    for (int s = 0; s < WIDE; ++s) carry[s] = start[s];
    const long vectors = ALG % 2 ? count / LANES : 0;
    for (long t = 0; t < vectors; ++t) {
        const long j = t * LANES;
#pragma GCC unroll 8
        for (int s = 0; s < WIDE; ++s) {
            const vec sums = scan_vector(*(const vec*)(x + s * apart + j)) + carry[s];
            *(vec*)(y + s * apart + j) = sums;
            carry[s] = sums[LANES - 1];
        }
    }
    for (long j = vectors * LANES; j < count; ++j)
#pragma GCC unroll 8
        for (int s = 0; s < WIDE; ++s) y[s * apart + j] = carry[s] += x[s * apart + j];
}

static float sum_of(const float* __restrict x, long count) {
    vec part[4] = {};
    long j = 0;
    for (; j + 4 * LANES <= count; j += 4 * LANES)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) part[u] += *(const vec*)(x + j + u * LANES);
    const vec all = (part[0] + part[1]) + (part[2] + part[3]);
    float total = 0.0f;
#pragma GCC unroll 16
    for (int l = 0; l < LANES; ++l) total += all[l];
    for (; j < count; ++j) total += x[j];
    return total;
}

static void scan_rows(const float* x, float* y, long rows, long cols) {
    const float zero[CHAINS] = {};
#pragma omp parallel for num_threads(THREADS) schedule(static)
    for (long i = 0; i < rows; i += CHAINS)
        if (i + CHAINS <= rows)
            walk<CHAINS>(x + i * cols, y + i * cols, cols, cols, zero);
        else
            for (long r = i; r < rows; ++r) walk<1>(x + r * cols, y + r * cols, 0, cols, zero);
}

static void scan_segments(const float* x, float* y, long rows, long cols) {
    const long count = (cols + SEGMENT - 1) / SEGMENT, whole = cols / SEGMENT;
    float* start = (float*)__builtin_malloc(rows * count * 4);
#pragma omp parallel num_threads(THREADS)
    {
#pragma omp for schedule(static)
        for (long t = 0; t < rows * count; ++t) {
            const long i = t / count, s = t % count;
            start[t] = sum_of(x + i * cols + s * SEGMENT, smaller(SEGMENT, cols - s * SEGMENT));
        }
#pragma omp for schedule(static)
        for (long i = 0; i < rows; ++i) {
            float before = 0.0f;
            for (long s = 0; s < count; ++s) {
                const float sum = start[i * count + s];
                start[i * count + s] = before;
                before += sum;
            }
        }
        const long groups = (count + CHAINS - 1) / CHAINS;
#pragma omp for schedule(static)
        for (long t = 0; t < rows * groups; ++t) {
            const long i = t / groups, s = t % groups * CHAINS;
            const float* from = x + i * cols;
            float* to = y + i * cols;
            if (s + CHAINS <= whole)
                walk<CHAINS>(from + s * SEGMENT, to + s * SEGMENT, SEGMENT, SEGMENT, start + i * count + s);
            else
                for (long k = s; k < smaller(s + CHAINS, count); ++k)
                    walk<1>(from + k * SEGMENT, to + k * SEGMENT, 0, smaller(SEGMENT, cols - k * SEGMENT),
                            start + i * count + k);
        }
    }
    __builtin_free(start);
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
    if (ALG < 2)
        scan_rows(x, y, sizes[0], sizes[1]);
    else
        scan_segments(x, y, sizes[0], sizes[1]);
}
