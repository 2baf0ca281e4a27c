// Heat spreading over a chip: a 5-point stencil with a power term, STEPS sweeps over an H x W grid, clamped edges.
// This form: whole sweeps between the output and one scratch grid, in column tiles, ROWS rows at a time.

static constexpr float STEP = 0.25f, ALONG_Y = 0.9f, ALONG_X = 1.1f, TO_AMBIENT = 0.05f, AMBIENT = 80.0f;

static inline float update(float c, float n, float s, float w, float e, float power) {
    if constexpr (DIVIDE)  // by resistances, as the physics is written down
        return c + STEP * ((n + s - 2 * c) / (1 / ALONG_Y) + (w + e - 2 * c) / (1 / ALONG_X) +
                           (AMBIENT - c) / (1 / TO_AMBIENT) + power);
    return c + STEP * ((n + s - 2 * c) * ALONG_Y + (w + e - 2 * c) * ALONG_X + (AMBIENT - c) * TO_AMBIENT + power);
}

static inline long clamp(long i, long n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

struct Grid {
    const float* in;
    const float* power;
    float* out;
    long h, w;
};

// One cell, neighbours by clamped indexes.
static inline void cell(const Grid& g, long y, long x) {
    const float* row = g.in + y * g.w;
    g.out[y * g.w + x] = update(row[x], g.in[clamp(y - 1, g.h) * g.w + x], g.in[clamp(y + 1, g.h) * g.w + x],
                                row[clamp(x - 1, g.w)], row[clamp(x + 1, g.w)], g.power[y * g.w + x]);
}

// Columns [x0, x1) of N rows from y on. The rows share what they load.
template <int N>
static void rows(const Grid& g, long y, long x0, long x1) {
    if (INNER == 0) {
        for (long x = x0; x < x1; x++) cell(g, y, x);
        return;
    }
    const float* line[N + 2];
    for (int r = 0; r < N + 2; r++) line[r] = g.in + clamp(y + r - 1, g.h) * g.w;
    const float* power = g.power + y * g.w;
    float* __restrict out = g.out + y * g.w;
    const long w = g.w, first = x0 < 1 ? 1 : x0, last = x1 > w - 1 ? w - 1 : x1;
    if (x0 == 0)
        for (int r = 0; r < N; r++) cell(g, y + r, 0);
    if (x1 == w && w > 1)
        for (int r = 0; r < N; r++) cell(g, y + r, w - 1);
#define ONE(r) out[r * w + x] = update(line[r + 1][x], line[r][x], line[r + 2][x], line[r + 1][x - 1], \
                                       line[r + 1][x + 1], power[r * w + x])
    if constexpr (INNER == 2) {
#pragma omp simd
        for (long x = first; x < last; x++) {
            ONE(0);
            if constexpr (N > 1) ONE(1);
            if constexpr (N > 2) { ONE(2); ONE(3); }
        }
    } else {
        for (long x = first; x < last; x++) {
            ONE(0);
            if constexpr (N > 1) ONE(1);
            if constexpr (N > 2) { ONE(2); ONE(3); }
        }
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* start = (const float*)buffers[0];
    float* result = (float*)buffers[2];
    const long h = sizes[0], w = sizes[1], steps = sizes[2];
    float* scratch = steps > 1 ? (float*)__builtin_malloc(sizeof(float) * h * w) : nullptr;
    const long groups = (h + ROWS - 1) / ROWS, tile = TILE_COLS < w ? TILE_COLS : w;
#pragma omp parallel num_threads(THREADS)
    for (long step = 0; step < steps; step++) {
        // The last sweep must end in `result`.
        float* out = (steps - step) % 2 ? result : scratch;
        const float* in = step == 0 ? start : out == result ? scratch : result;
        const Grid g = {in, (const float*)buffers[1], out, h, w};
#pragma omp for schedule(static)
        for (long group = 0; group < groups; group++) {
            const long y = group * ROWS;
            for (long x = 0; x < w; x += tile) {
                const long end = x + tile < w ? x + tile : w;
                if (y + ROWS <= h) rows<ROWS>(g, y, x, end);
                else for (long tail = y; tail < h; tail++) rows<1>(g, tail, x, end);
            }
        }
    }
    __builtin_free(scratch);
}
