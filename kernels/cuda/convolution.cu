// A filter of F x F over an image of H x W in f32, without padding (as torch.nn.functional.conv2d): out is [H - F + 1,
// W - F + 1]. A block computes BLOCK_Y * TILE_Y rows of BLOCK_X * TILE_X pixels, a thread TILE_Y x TILE_X of them,
// BLOCK_Y and BLOCK_X apart.
// IMAGE_SHARED: the block's part of the image is copied to shared memory, in rows that are PAD longer.
// FILTER_SHARED: so is the filter. Else they are read through the cache, READ_ONLY: by the path of data that nobody
// writes.
constexpr int THREADS = BLOCK_X * BLOCK_Y, SPAN_X = BLOCK_X * TILE_X, SPAN_Y = BLOCK_Y * TILE_Y;

__device__ __forceinline__ float read(const float* x) {
#if READ_ONLY
    return __ldg(x);
#else
    return *x;
#endif
}

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void convolution(const float* image, const float* filter,
                                                                              float* out, int H, int W, int F) {
    extern __shared__ float shared[];
    float* filter_tile = shared;
    float* image_tile = shared + (FILTER_SHARED ? F * F : 0);
    const int out_H = H - F + 1, out_W = W - F + 1, pitch = SPAN_X + F - 1 + PAD;
    const int x0 = blockIdx.x * SPAN_X, y0 = blockIdx.y * SPAN_Y;
    const int thread = threadIdx.y * BLOCK_X + threadIdx.x;

    if (FILTER_SHARED)
        for (int i = thread; i < F * F; i += THREADS) filter_tile[i] = read(filter + i);
    if (IMAGE_SHARED) {
        for (int y = threadIdx.y; y < SPAN_Y + F - 1; y += BLOCK_Y)
            for (int x = threadIdx.x; x < SPAN_X + F - 1; x += BLOCK_X)
                image_tile[y * pitch + x] =
                    y0 + y < H && x0 + x < W ? read(image + static_cast<size_t>(y0 + y) * W + x0 + x) : 0.0f;
    }
    if (FILTER_SHARED || IMAGE_SHARED) __syncthreads();

    float sum[TILE_Y][TILE_X] = {};
    for (int fy = 0; fy < F; ++fy) {
#pragma unroll UNROLL
        for (int fx = 0; fx < F; ++fx) {
            const float weight = FILTER_SHARED ? filter_tile[fy * F + fx] : read(filter + fy * F + fx);
#pragma unroll
            for (int i = 0; i < TILE_Y; ++i)
#pragma unroll
                for (int j = 0; j < TILE_X; ++j) {
                    const int y = threadIdx.y + i * BLOCK_Y + fy, x = threadIdx.x + j * BLOCK_X + fx;
                    // Beyond the image the nearest pixel is read; what is summed from it is not written.
                    const float pixel = IMAGE_SHARED ? image_tile[y * pitch + x]
                                                     : read(image + static_cast<size_t>(min(y0 + y, H - 1)) * W +
                                                            min(x0 + x, W - 1));
                    sum[i][j] += weight * pixel;
                }
        }
    }
#pragma unroll
    for (int i = 0; i < TILE_Y; ++i)
#pragma unroll
        for (int j = 0; j < TILE_X; ++j) {
            const int y = y0 + threadIdx.y + i * BLOCK_Y, x = x0 + threadIdx.x + j * BLOCK_X;
            if (y < out_H && x < out_W) out[static_cast<size_t>(y) * out_W + x] = sum[i][j];
        }
}
