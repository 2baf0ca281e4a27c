// axpy: y = a * x + y over n elements, in chunks of CHUNK.
// Every parameter of the search space is a macro here. OPT, FASTMATH and VECTOR_BITS also set compiler flags.
// buffers: the inputs in order, then the outputs in order. sizes: the problem's sizes in order.
extern "C" void run(void* const* buffers, const long long* sizes) {
    const float* __restrict x = static_cast<const float*>(buffers[0]);
    const float* __restrict y = static_cast<const float*>(buffers[1]);
    float* __restrict out = static_cast<float*>(buffers[2]);
    const long long n = sizes[0];
    constexpr int ways = UNROLL;  // the pragma below takes no macro
#pragma omp parallel for num_threads(THREADS)
    for (long long begin = 0; begin < n; begin += CHUNK) {
        const long long end = begin + CHUNK < n ? begin + CHUNK : n;
#pragma GCC unroll ways
        for (long long i = begin; i < end; ++i) out[i] = 2.0f * x[i] + y[i];
    }
}
