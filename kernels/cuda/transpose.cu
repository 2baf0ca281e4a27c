// y[columns][rows] = x[rows][columns] in f32. A block moves a tile of TILE_Y rows and TILE_X columns with BLOCK
// threads.
// SHARED: through shared memory, so that reads and writes both go along rows; rows of the tile are PAD longer, which
// keeps a column out of one bank. Else straight: reads go along rows and writes down columns, or the other way around
// (READ_ROWS). STREAM: what is read and written passes by the caches.
// BY_COLUMNS: neighbouring blocks are neighbours in a column of tiles.
__device__ __forceinline__ float read(const float* x) {
#if STREAM
    return __ldcs(x);
#else
    return *x;
#endif
}
__device__ __forceinline__ void write(float* y, float value) {
#if STREAM
    __stcs(y, value);
#else
    *y = value;
#endif
}

extern "C" __global__ __launch_bounds__(BLOCK) void transpose(const float* __restrict__ x, float* __restrict__ y,
                                                              int rows, int columns) {
    const int tiles_x = (columns + TILE_X - 1) / TILE_X, tiles_y = (rows + TILE_Y - 1) / TILE_Y;
    const int tile = blockIdx.x;
    const int column0 = (BY_COLUMNS ? tile / tiles_y : tile % tiles_x) * TILE_X;
    const int row0 = (BY_COLUMNS ? tile % tiles_y : tile / tiles_x) * TILE_Y;
#if SHARED
    __shared__ float kept[TILE_Y][TILE_X + PAD];
#pragma unroll
    for (int i = 0; i < TILE_X * TILE_Y / BLOCK; ++i) {
        const int at = i * BLOCK + threadIdx.x, row = at / TILE_X, column = at % TILE_X;
        if (row0 + row < rows && column0 + column < columns)
            kept[row][column] = read(x + static_cast<size_t>(row0 + row) * columns + column0 + column);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILE_X * TILE_Y / BLOCK; ++i) {
        const int at = i * BLOCK + threadIdx.x, row = at % TILE_Y, column = at / TILE_Y;
        if (row0 + row < rows && column0 + column < columns)
            write(y + static_cast<size_t>(column0 + column) * rows + row0 + row, kept[row][column]);
    }
#else
#pragma unroll
    for (int i = 0; i < TILE_X * TILE_Y / BLOCK; ++i) {
        const int at = i * BLOCK + threadIdx.x;
        const int row = row0 + (READ_ROWS ? at / TILE_X : at % TILE_Y);
        const int column = column0 + (READ_ROWS ? at % TILE_X : at / TILE_Y);
        if (row < rows && column < columns)
            write(y + static_cast<size_t>(column) * rows + row, read(x + static_cast<size_t>(row) * columns + column));
    }
#endif
}
