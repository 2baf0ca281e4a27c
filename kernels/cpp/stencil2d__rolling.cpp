// Heat spreading over a chip: a 5-point stencil with a power term, STEPS sweeps over an H x W grid, clamped edges.
// This form: strips of STRIP vectors roll down a band of rows, so that each row is loaded once and stays in registers.

typedef float vec __attribute__((vector_size(4 * VEC)));
typedef float loose __attribute__((vector_size(4 * VEC), aligned(4), may_alias));

static constexpr float STEP = 0.25f, ALONG_Y = 0.9f, ALONG_X = 1.1f, TO_AMBIENT = 0.05f, AMBIENT = 80.0f;
static constexpr int UNROLLED = UNROLL;  // the pragma below expands no macros

// Lanes of two neighbouring vectors that make the vector one cell to the west, and to the east.
#if VEC == 4
#define WEST 3, 4, 5, 6
#define EAST 1, 2, 3, 4
#elif VEC == 8
#define WEST 7, 8, 9, 10, 11, 12, 13, 14
#define EAST 1, 2, 3, 4, 5, 6, 7, 8
#else
#define WEST 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define EAST 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#endif

template <typename T>
static inline T update(T c, T n, T s, T w, T e, T power) {
    return c + STEP * ((n + s - 2 * c) * ALONG_Y + (w + e - 2 * c) * ALONG_X + (AMBIENT - c) * TO_AMBIENT + power);
}

static inline long clamp(long i, long n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }
static inline vec load(const float* p) { return *(const loose*)p; }

struct Grid {
    const float* in;
    const float* power;
    float* out;
    long h, w;
};

// Rows [y0, y1) of the N * VEC columns from x on, all of them interior columns.
template <int N>
static void strip(const Grid& g, long y0, long y1, long x) {
    vec north[N], here[N], south[N];
    const float* above = g.in + clamp(y0 - 1, g.h) * g.w + x;
    const float* row = g.in + y0 * g.w + x;
    for (int k = 0; k < N; k++) north[k] = load(above + k * VEC), here[k] = load(row + k * VEC);
#pragma GCC unroll UNROLLED
    for (long y = y0; y < y1; y++) {
        const float* below = g.in + clamp(y + 1, g.h) * g.w + x;
        const float* mine = g.in + y * g.w + x;
        const long at = y * g.w + x;
        for (int k = 0; k < N; k++) south[k] = load(below + k * VEC);
        for (int k = 0; k < N; k++) {
            vec west = (SHIFT && k > 0) ? __builtin_shufflevector(here[k > 0 ? k - 1 : 0], here[k], WEST)
                                        : load(mine + k * VEC - 1);
            vec east = (SHIFT && k + 1 < N) ? __builtin_shufflevector(here[k], here[k + 1 < N ? k + 1 : k], EAST)
                                            : load(mine + k * VEC + 1);
            vec power = load(g.power + at + k * VEC);
            *(loose*)(g.out + at + k * VEC) = update<vec>(here[k], north[k], south[k], west, east, power);
        }
        for (int k = 0; k < N; k++) north[k] = here[k], here[k] = south[k];
    }
}

static void column(const Grid& g, long y0, long y1, long x) {
    const long west = clamp(x - 1, g.w), east = clamp(x + 1, g.w);
    for (long y = y0; y < y1; y++) {
        const float* row = g.in + y * g.w;
        g.out[y * g.w + x] = update<float>(row[x], g.in[clamp(y - 1, g.h) * g.w + x], g.in[clamp(y + 1, g.h) * g.w + x],
                                           row[west], row[east], g.power[y * g.w + x]);
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* start = (const float*)buffers[0];
    float* result = (float*)buffers[2];
    const long h = sizes[0], w = sizes[1], steps = sizes[2];
    float* scratch = steps > 1 ? (float*)__builtin_malloc(sizeof(float) * h * w) : nullptr;
#pragma omp parallel num_threads(THREADS)
    for (long step = 0; step < steps; step++) {
        // The last sweep must end in `result`.
        float* out = (steps - step) % 2 ? result : scratch;
        const float* in = step == 0 ? start : out == result ? scratch : result;
        const Grid g = {in, (const float*)buffers[1], out, h, w};
#pragma omp for schedule(static)
        for (long y = 0; y < h; y += BAND) {
            const long end = y + BAND < h ? y + BAND : h;
            long x = 1;
            column(g, y, end, 0);
            for (; x + STRIP * VEC <= w - 1; x += STRIP * VEC) strip<STRIP>(g, y, end, x);
            for (; x + VEC <= w - 1; x += VEC) strip<1>(g, y, end, x);
            for (; x < w; x++) column(g, y, end, x);
        }
    }
    __builtin_free(scratch);
}
