// A 7-point stencil on BATCH volumes of D x H x W cells, zeros outside.
// Lines of a volume are taken in tiles along y and x, PLANES planes at once so that they share the lines between them.

struct Weights {
    float centre, down, up, north, south, west, east;
};

struct Volume {
    const float* in;
    float* out;
    const float* zeros;  // a line of them
    long d, h, w;
    const float* line(long z, long y) const {
        return z < 0 || z >= d || y < 0 || y >= h ? zeros : in + (z * h + y) * w;
    }
    float at(long z, long y, long x) const { return x < 0 || x >= w ? 0.0f : line(z, y)[x]; }
};

static inline void cell(const Volume& v, const Weights& k, long z, long y, long x) {
    v.out[(z * v.h + y) * v.w + x] = k.centre * v.at(z, y, x) + k.down * v.at(z - 1, y, x) + k.up * v.at(z + 1, y, x) +
                                     k.north * v.at(z, y - 1, x) + k.south * v.at(z, y + 1, x) +
                                     k.west * v.at(z, y, x - 1) + k.east * v.at(z, y, x + 1);
}

// Cells [x0, x1) of the lines (z, y) ... (z + N - 1, y).
template <int N>
static void lines(const Volume& v, const Weights& weights, long z, long y, long x0, long x1) {
    const Weights k = weights;
    if constexpr (INNER == 0) {
        for (long x = x0; x < x1; x++) cell(v, k, z, y, x);
        return;
    }
    const float *here[N + 2], *north[N], *south[N];
    for (int i = 0; i < N + 2; i++) here[i] = v.line(z + i - 1, y);
    for (int i = 0; i < N; i++) north[i] = v.line(z + i, y - 1), south[i] = v.line(z + i, y + 1);
    float* __restrict out = v.out + (z * v.h + y) * v.w;
    const long plane = v.h * v.w, first = x0 < 1 ? 1 : x0, last = x1 > v.w - 1 ? v.w - 1 : x1;
    for (int i = 0; i < N; i++) {
        if (x0 == 0) cell(v, k, z + i, y, 0);
        if (x1 == v.w && v.w > 1) cell(v, k, z + i, y, v.w - 1);
    }
#define ONE(i)                                                                                       \
    out[i * plane + x] = k.centre * here[i + 1][x] + k.down * here[i][x] + k.up * here[i + 2][x] +   \
                         k.north * north[i][x] + k.south * south[i][x] + k.west * here[i + 1][x - 1] + \
                         k.east * here[i + 1][x + 1]
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

// Planes [z, z + PLANES) of the rows [y0, y1).
static void block(const Volume& v, const Weights& k, long z, long y0, long y1) {
    const long tile = TILE_X < v.w ? TILE_X : v.w, planes = z + PLANES <= v.d ? PLANES : v.d - z;
    for (long x = 0; x < v.w; x += tile) {
        const long end = x + tile < v.w ? x + tile : v.w;
        for (long y = y0; y < y1; y++) {
            if (planes == PLANES) lines<PLANES>(v, k, z, y, x, end);
            else for (long i = 0; i < planes; i++) lines<1>(v, k, z + i, y, x, end);
        }
    }
}

extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* in = (const float*)buffers[0];
    const Weights k = *(const Weights*)buffers[1];
    float* out = (float*)buffers[2];
    const long batch = sizes[0], d = sizes[1], h = sizes[2], w = sizes[3], volume = d * h * w;
    const long tile = TILE_Y < h ? TILE_Y : h, tiles = (h + tile - 1) / tile, layers = (d + PLANES - 1) / PLANES;
    float* zeros = (float*)__builtin_calloc(w, sizeof(float));
    // Threads share out whole volumes and layers (0), or the tiles along y of each volume (1).
#pragma omp parallel num_threads(THREADS)
    if constexpr (SHARE == 0) {
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long layer = 0; layer < layers; layer++)
                for (long y = 0; y < h; y += tile)
                    block({in + b * volume, out + b * volume, zeros, d, h, w}, k, layer * PLANES, y,
                          y + tile < h ? y + tile : h);
    } else {
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long t = 0; t < tiles; t++)
                for (long layer = 0; layer < layers; layer++)
                    block({in + b * volume, out + b * volume, zeros, d, h, w}, k, layer * PLANES, t * tile,
                          (t + 1) * tile < h ? (t + 1) * tile : h);
    }
    __builtin_free(zeros);
}
