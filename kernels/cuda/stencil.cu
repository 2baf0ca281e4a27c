// One or more steps of out = centre * u + side * (the six neighbours of u) on a [D, H, W] grid in f32; beyond the grid
// u is zero. A block covers BLOCK_X x (BLOCK_Y * ROWS) columns of the grid and marches DEPTH planes up them; a thread
// has ROWS of the columns, BLOCK_Y apart.
// MARCH: planes below and above are kept in registers while it marches, so that each value is read once by its thread.
// SHARED: neighbours in the plane come from a copy of the plane in shared memory (two, taken in turns).
constexpr int THREADS = BLOCK_X * BLOCK_Y, SPAN_Y = BLOCK_Y * ROWS;

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void stencil(const float* __restrict__ u,
                                                                          float* __restrict__ out, int D, int H, int W,
                                                                          float centre, float side) {
#if SHARED
    __shared__ float plane[2][SPAN_Y + 2][BLOCK_X + 2];
#endif
    const int x = blockIdx.x * BLOCK_X + threadIdx.x, y0 = blockIdx.y * SPAN_Y, z0 = blockIdx.z * DEPTH;
    auto at = [&](int z, int y, int x) {
        const bool inside = z >= 0 && z < D && y >= 0 && y < H && x >= 0 && x < W;
        return inside ? u[(static_cast<size_t>(z) * H + y) * W + x] : 0.0f;
    };
    float below[ROWS], here[ROWS], above[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int y = y0 + threadIdx.y + i * BLOCK_Y;
        below[i] = MARCH ? at(z0 - 1, y, x) : 0.0f;
        here[i] = MARCH ? at(z0, y, x) : 0.0f;
    }
    const int last = min(z0 + DEPTH, D);
#pragma unroll UNROLL
    for (int z = z0; z < last; ++z) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int y = y0 + threadIdx.y + i * BLOCK_Y;
            if (!MARCH) {
                below[i] = at(z - 1, y, x);
                here[i] = at(z, y, x);
            }
            above[i] = at(z + 1, y, x);
        }
#if SHARED
        float(&tile)[SPAN_Y + 2][BLOCK_X + 2] = plane[(z - z0) & 1];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = threadIdx.y + i * BLOCK_Y;
            tile[row + 1][threadIdx.x + 1] = here[i];
            if (threadIdx.x == 0) tile[row + 1][0] = at(z, y0 + row, x - 1);
            if (threadIdx.x == BLOCK_X - 1) tile[row + 1][BLOCK_X + 1] = at(z, y0 + row, x + 1);
        }
        if (threadIdx.y == 0) tile[0][threadIdx.x + 1] = at(z, y0 - 1, x);
        if (threadIdx.y == BLOCK_Y - 1) tile[SPAN_Y + 1][threadIdx.x + 1] = at(z, y0 + SPAN_Y, x);
        __syncthreads();  // the other copy is read before the next barrier, and written only after it
#endif
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = threadIdx.y + i * BLOCK_Y, y = y0 + row;
#if SHARED
            const float across = tile[row + 1][threadIdx.x] + tile[row + 1][threadIdx.x + 2];
            const float along = tile[row][threadIdx.x + 1] + tile[row + 2][threadIdx.x + 1];
#else
            const float across = at(z, y, x - 1) + at(z, y, x + 1);
            const float along = at(z, y - 1, x) + at(z, y + 1, x);
#endif
            if (y < H && x < W)
                out[(static_cast<size_t>(z) * H + y) * W + x] =
                    centre * here[i] + side * (across + along + below[i] + above[i]);
            if (MARCH) {
                below[i] = here[i];
                here[i] = above[i];
            }
        }
    }
}
