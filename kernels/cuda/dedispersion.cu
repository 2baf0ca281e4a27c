// Dedispersion of a radio telescope's spectra: out[t][s] = the sum over channels c of x[c][s + delay[t][c]], in f32,
// for `trials` rows of delays and `samples` outputs each. A block has BLOCK_X * TILE_X samples of BLOCK_Y * TILE_Y
// trials, a thread TILE_Y x TILE_X of them, BLOCK_Y and BLOCK_X apart (NEAR: a thread's trials lie side by side).
// DELAYS_SHARED: CHANNELS channels' delays at a time are brought to shared memory.
constexpr int THREADS = BLOCK_X * BLOCK_Y, SPAN_Y = BLOCK_Y * TILE_Y;

extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void dedispersion(
    const float* __restrict__ x, const int* __restrict__ delay, float* __restrict__ out, int channels, int trials,
    int samples, int row) {
    const int s0 = blockIdx.x * BLOCK_X * TILE_X + threadIdx.x, t0 = blockIdx.y * SPAN_Y;
    int trial[TILE_Y], sample[TILE_X];
#pragma unroll
    for (int i = 0; i < TILE_Y; ++i) trial[i] = NEAR ? threadIdx.y * TILE_Y + i : threadIdx.y + i * BLOCK_Y;
#pragma unroll
    for (int j = 0; j < TILE_X; ++j) sample[j] = min(s0 + j * BLOCK_X, samples - 1);  // beyond the end: not written
    float sum[TILE_Y][TILE_X] = {};

    auto add = [&](int c, const int (&shift)[TILE_Y]) {
        const float* from = x + static_cast<size_t>(c) * row;
#pragma unroll
        for (int i = 0; i < TILE_Y; ++i)
#pragma unroll
            for (int j = 0; j < TILE_X; ++j) sum[i][j] += from[sample[j] + shift[i]];
    };
    int shift[TILE_Y];
#if DELAYS_SHARED
    __shared__ int delays[SPAN_Y][CHANNELS];
    for (int c0 = 0; c0 < channels; c0 += CHANNELS) {
        __syncthreads();
        for (int i = threadIdx.y * BLOCK_X + threadIdx.x; i < SPAN_Y * CHANNELS; i += THREADS) {
            const int t = min(t0 + i / CHANNELS, trials - 1), c = min(c0 + i % CHANNELS, channels - 1);
            delays[i / CHANNELS][i % CHANNELS] = delay[static_cast<size_t>(t) * channels + c];
        }
        __syncthreads();
        const int some = min(CHANNELS, channels - c0);
#pragma unroll UNROLL
        for (int c = 0; c < some; ++c) {
#pragma unroll
            for (int i = 0; i < TILE_Y; ++i) shift[i] = delays[trial[i]][c];
            add(c0 + c, shift);
        }
    }
#else
#pragma unroll UNROLL
    for (int c = 0; c < channels; ++c) {
#pragma unroll
        for (int i = 0; i < TILE_Y; ++i)
            shift[i] = __ldg(delay + static_cast<size_t>(min(t0 + trial[i], trials - 1)) * channels + c);
        add(c, shift);
    }
#endif
#pragma unroll
    for (int i = 0; i < TILE_Y; ++i)
#pragma unroll
        for (int j = 0; j < TILE_X; ++j) {
            const int t = t0 + trial[i], s = s0 + j * BLOCK_X;
            if (t < trials && s < samples) out[static_cast<size_t>(t) * samples + s] = sum[i][j];
        }
}
