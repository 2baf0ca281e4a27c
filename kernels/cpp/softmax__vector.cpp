// Softmax of each row of a ROWS x COLS matrix.
// This form: vectors written out, exponentials by a polynomial of DEGREE, TOGETHER rows side by side to hide latency.

#define INLINED __attribute__((always_inline))
#define INLINE inline INLINED

typedef float vec __attribute__((vector_size(4 * VEC)));
typedef int ivec __attribute__((vector_size(4 * VEC)));
typedef float loose __attribute__((vector_size(4 * VEC), aligned(4), may_alias));

static constexpr float LOG2E = 1.44269504f, LOWEST = -3.0e38f;
static constexpr long SEGMENT = 8192;  // summed in float; longer sums are taken in double

static INLINE vec load(const float* p) { return *(const loose*)p; }
static INLINE void store(float* p, vec v) { *(loose*)p = v; }
static INLINE vec all(float x) { return x - vec{}; }
static INLINE vec larger(vec a, vec b) { return a > b ? a : b; }

// The last n < VEC entries of a row; the other lanes hold `fill`.
static INLINE vec load_part(const float* p, long n, float fill) {
    float lanes[VEC];
    for (int l = 0; l < VEC; l++) lanes[l] = fill;
    for (long l = 0; l < n; l++) lanes[l] = p[l];
    return load(lanes);
}

static INLINE void store_part(float* p, vec v, long n) {
    for (long l = 0; l < n; l++) p[l] = v[l];
}

// e^x for x <= 0.
static INLINE vec exponential(vec x) {
    const vec t = larger(x * LOG2E, all(-100.0f));  // far from denormal numbers, also after the division
    const ivec n = __builtin_convertvector(t - 0.5f, ivec);
    const vec f = t - __builtin_convertvector(n, vec);
    vec p;
    if constexpr (DEGREE == 3) {
        p = f * 0.0551716601f + 0.242611138f;
        p = (p * f + 0.693260989f) * f + 0.999928073f;
    } else {
        p = f * 0.0013276471f + 0.0096755416f;
        p = (p * f + 0.0555071328f) * f + 0.240221197f;
        p = (p * f + 0.693146967f) * f + 1.0f;
    }
    return p * (vec)((n + 127) << 23);
}

// Calls body(offset, which) for each whole vector in [i, n), UNROLL at a time, then singly. Returns where it stopped.
template <typename Body>
static INLINE long over(long i, long n, Body body) {
    for (; i + UNROLL * VEC <= n; i += UNROLL * VEC) {
#pragma GCC unroll 8
        for (int u = 0; u < UNROLL; u++) body(i + u * VEC, u);
    }
    for (; i + VEC <= n; i += VEC) body(i, 0);
    return i;
}

static INLINE float largest_lane(vec v) {
    float m = v[0];
    for (int l = 1; l < VEC; l++) m = m > v[l] ? m : v[l];
    return m;
}

static INLINE float sum_lanes(vec v) {
    float sum = 0.0f;
    for (int l = 0; l < VEC; l++) sum += v[l];
    return sum;
}

// The entries after the last whole vector: one padded vector, or one by one (each as a vector of equal lanes).
template <typename Body>
static INLINE void over_tail(long from, long n, Body body) {
    if (PADDED) {
        if (from < n) body(from, n - from);
    } else {
        for (long i = from; i < n; i++) body(i, 1);
    }
}

// The sum of the exponentials of [from, to) of R rows is added to `sum`; with KEEP they stay in y.
template <int R>
static INLINE void add(const float* x, float* __restrict y, long n, long from, long to, const vec* m, double* sum) {
    vec part[R][UNROLL] = {};
    const long whole = over(from, to, [&](long i, int u) INLINED {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec e = exponential(load(x + r * n + i) - m[r]);
            if (KEEP) store(y + r * n + i, e);
            part[r][u] += e;
        }
    });
    for (int r = 0; r < R; r++) {
        over_tail(whole, to, [&](long i, long k) INLINED {
            const vec e = exponential(load_part(x + r * n + i, k, LOWEST) - m[r]);
            if (KEEP) store_part(y + r * n + i, e, k);
            for (int l = 0; l < VEC; l++) part[r][0][l] += l < k ? e[l] : 0.0f;
        });
        for (int u = 1; u < UNROLL; u++) part[r][0] += part[r][u];
        sum[r] += sum_lanes(part[r][0]);
    }
}

template <int R>
static void rows(const float* x, float* __restrict y, long n) {
    vec m[R][UNROLL], largest[R], inverse[R];
    double sum[R] = {};
    for (int r = 0; r < R; r++)
        for (int u = 0; u < UNROLL; u++) m[r][u] = all(LOWEST);
    const long whole = over(0, n, [&](long i, int u) INLINED {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) m[r][u] = larger(m[r][u], load(x + r * n + i));
    });
    for (int r = 0; r < R; r++) {
        for (int u = 1; u < UNROLL; u++) m[r][0] = larger(m[r][0], m[r][u]);
        over_tail(whole, n, [&](long i, long k) INLINED {
            m[r][0] = larger(m[r][0], load_part(x + r * n + i, k, LOWEST));
        });
        largest[r] = all(largest_lane(m[r][0]));
    }
    for (long i = 0; i < n; i += SEGMENT) add<R>(x, y, n, i, n - i < SEGMENT ? n : i + SEGMENT, largest, sum);
    for (int r = 0; r < R; r++) inverse[r] = all((float)(1.0 / sum[r]));
    over(0, n, [&](long i, int) INLINED {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const vec e = KEEP ? load(y + r * n + i) : exponential(load(x + r * n + i) - largest[r]);
            store(y + r * n + i, e * inverse[r]);
        }
    });
    for (int r = 0; r < R; r++)
        over_tail(whole, n, [&](long i, long k) INLINED {
            const vec e = KEEP ? load_part(y + r * n + i, k, 0.0f)
                               : exponential(load_part(x + r * n + i, k, LOWEST) - largest[r]);
            store_part(y + r * n + i, e * inverse[r], k);
        });
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* x = (const float*)buffers[0];
    float* y = (float*)buffers[1];
    const long count = sizes[0], cols = sizes[1];
#pragma omp parallel for schedule(static) num_threads(THREADS)
    for (long r = 0; r < count; r += TOGETHER) {
        if (r + TOGETHER <= count) rows<TOGETHER>(x + r * cols, y + r * cols, cols);
        else for (long tail = r; tail < count; tail++) rows<1>(x + tail * cols, y + tail * cols, cols);
    }
}
