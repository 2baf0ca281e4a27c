// Heat spreading over a chip: a 5-point stencil with a power term, STEPS sweeps over an H x W grid, clamped edges.
// This form: each tile is taken through TIME steps in a local buffer, recomputing a halo instead of going to memory.

static constexpr float STEP = 0.25f, ALONG_Y = 0.9f, ALONG_X = 1.1f, TO_AMBIENT = 0.05f, AMBIENT = 80.0f;
static constexpr long LOCAL_W = TILE_W + 2 * TIME, LOCAL = (TILE_H + 2 * TIME) * LOCAL_W;

static inline float update(float c, float n, float s, float w, float e, float power) {
    return c + STEP * ((n + s - 2 * c) * ALONG_Y + (w + e - 2 * c) * ALONG_X + (AMBIENT - c) * TO_AMBIENT + power);
}

static inline long lower(long a, long b) { return a < b ? a : b; }
static inline long upper(long a, long b) { return a > b ? a : b; }

// Rows at `at + y * stride`, addressed by the y and x of the whole grid.
template <typename T>
struct View {
    T* data;
    long stride, y0, x0;
    T* row(long y) const { return data + (y - y0) * stride - x0; }
};

struct Box {
    long y0, y1, x0, x1;
};

static void sweep(View<const float> in, View<const float> power, View<float> out, Box box, long h, long w) {
    for (long y = box.y0; y < box.y1; y++) {
        const float* north = in.row(upper(y - 1, 0));
        const float* here = in.row(y);
        const float* south = in.row(lower(y + 1, h - 1));
        const float* heat = power.row(y);
        float* __restrict to = out.row(y);
        const long first = upper(box.x0, 1), last = lower(box.x1, w - 1);
        if (box.x0 == 0) to[0] = update(here[0], north[0], south[0], here[0], here[lower(1, w - 1)], heat[0]);
        if constexpr (SIMD) {
#pragma omp simd
            for (long x = first; x < last; x++)
                to[x] = update(here[x], north[x], south[x], here[x - 1], here[x + 1], heat[x]);
        } else {
            for (long x = first; x < last; x++)
                to[x] = update(here[x], north[x], south[x], here[x - 1], here[x + 1], heat[x]);
        }
        if (box.x1 == w && w > 1) {
            const long x = w - 1;
            to[x] = update(here[x], north[x], south[x], here[x - 1], here[x], heat[x]);
        }
    }
}

// `depth` steps of one tile. Step s computes what the later steps of the tile will still look at.
static void tile(View<const float> in, View<const float> power, View<float> out, Box box, long depth, long h, long w,
                 float* buffer) {
    const long oy = box.y0 - TIME, ox = box.x0 - TIME;
    for (long s = 1; s <= depth; s++) {
        const long halo = depth - s;
        const Box now = {upper(box.y0 - halo, 0), lower(box.y1 + halo, h), upper(box.x0 - halo, 0),
                         lower(box.x1 + halo, w)};
        float* from = buffer + (s % 2 ? LOCAL : 0);
        float* to = buffer + (s % 2 ? 0 : LOCAL);
        sweep(s == 1 ? in : View<const float>{from, LOCAL_W, oy, ox}, power,
              s == depth ? out : View<float>{to, LOCAL_W, oy, ox}, now, h, w);
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* start = (const float*)buffers[0];
    float* result = (float*)buffers[2];
    const long h = sizes[0], w = sizes[1], steps = sizes[2], rounds = (steps + TIME - 1) / TIME;
    const View<const float> power = {(const float*)buffers[1], w, 0, 0};
    float* scratch = rounds > 1 ? (float*)__builtin_malloc(sizeof(float) * h * w) : nullptr;
#pragma omp parallel num_threads(THREADS)
    {
        float* buffer = (float*)__builtin_malloc(sizeof(float) * 2 * LOCAL);
        for (long round = 0; round < rounds; round++) {
            // The last round must end in `result`.
            float* out = (rounds - round) % 2 ? result : scratch;
            const float* in = round == 0 ? start : out == result ? scratch : result;
            const long depth = lower(TIME, steps - round * TIME);
#pragma omp for collapse(2) schedule(static)
            for (long y = 0; y < h; y += TILE_H)
                for (long x = 0; x < w; x += TILE_W)
                    tile({in, w, 0, 0}, power, {out, w, 0, 0}, {y, lower(y + TILE_H, h), x, lower(x + TILE_W, w)},
                         depth, h, w, buffer);
        }
        __builtin_free(buffer);
    }
    __builtin_free(scratch);
}
