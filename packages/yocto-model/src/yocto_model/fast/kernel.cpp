// A few rows through a GPT, at the speed at which memory gives the weights.
//
// For one token a matrix is read once and used once, so what counts is how few bytes a weight takes
// and that nothing else is waited for. Weights stay rounded in memory (KIND says how) and become
// float32 in registers, where everything is computed: no activation is rounded, and a row has the
// same result, to the bit, alone or beside others. All threads go through all layers together, and
// wait where one needs what the others made. layers.py says what is computed.
//
// Letters as there, but that n rows (a token each) take the place of B and T.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define FLOAT32 0
#define FLOAT16 1
#define BFLOAT16 2
#define INT8 3
#define INT4 4
constexpr int BITS = KIND == FLOAT32 ? 32 : KIND == INT8 ? 8 : KIND == INT4 ? 4 : 16;
enum { LAYERNORM, RMSNORM };
enum { GELU, GELU_TANH, SWIGLU };

constexpr int WIDTH = 16;  // numbers in a vector; compilers split it for shorter registers
constexpr int STEP = 2 * WIDTH;  // inputs are padded with zeros to a multiple of this
typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef int8_t Bytes __attribute__((vector_size(WIDTH)));

extern "C" {
struct Matrix {  // (out / 4, in / 32, 4, 32), padded
    const char* weight;
    const int32_t* groups;  // int4: scale and least weight of 32 weights, bfloat16 each
    const float* scale;  // int8: of each output
    const float* bias;
    int64_t out, in;
};
struct Norm {
    const float *gain, *bias;
};
struct Layer {
    Norm ln_1, ln_2, q_norm, k_norm;
    Matrix qkv, proj, up, down;
};
struct Model {
    const Layer* layers;
    const float *tokens, *positions;  // (V, C), and (block_size, C) or null
    const float *cos, *sin;  // (block_size, D), or null
    Norm ln_f;
    int64_t n_layer, C, H, K, D, M, norm, activation;
    float eps;
};
struct Row {
    float* cache;  // the keys of its first layer, (K, capacity, D)
    int64_t next_values, next_layer, next_head;  // how many numbers further
    int64_t place;  // in the cache, which holds all before it
    int64_t first;  // what lies before this place is hidden
    int64_t position, token;
};
}

// --- numbers ---------------------------------------------------------------------------------

template <class T, class S>
static inline T read(const S* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline float sum(Vector v) {
    struct { Eight low, high; } halves = read<decltype(halves)>(&v);
    Eight half = halves.low + halves.high;
    struct { Four low, high; } quarters = read<decltype(quarters)>(&half);
    Four quarter = quarters.low + quarters.high;
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

static float dot(const float* a, const float* b, int64_t n) {
    Vector parts = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) parts += read<Vector>(a + i) * read<Vector>(b + i);
    float total = sum(parts);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// e^x for x <= 0, right to 2e-7: 2^f by its Taylor series, the whole part into the exponent's bits.
static inline float exp_of(float x) {
    float t = x * 1.44269504f;
    t = t < -126 ? -126 : t;
    int32_t whole = (int32_t)(t - 0.5f);
    float f = (t - (float)whole) * 0.693147181f;
    float y = 1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f / 720));
    y = 1 + f * (1 + f * (1 / 2.f + f * y));
    int32_t bits = read<int32_t>(&y) + (whole << 23);
    return read<float>(&bits);
}

static inline float sigmoid(float x) {
    float e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : 1) / (1 + e);
}

// What the compiler would make of __builtin_convertvector; gcc does it number by number.
#if defined(__AVX512F__)
static inline Ints widened(Bytes b) { return (Ints)_mm512_cvtepi8_epi32((__m128i)b); }
static inline Ints widened(Halves h) { return (Ints)_mm512_cvtepu16_epi32((__m256i)h); }
#elif defined(__AVX2__)
static inline Ints joined(__m256i low, __m256i high) {
    Ints both;
    memcpy(&both, &low, 32), memcpy((char*)&both + 32, &high, 32);
    return both;
}
static inline Ints widened(Bytes b) {
    __m128i all = (__m128i)b;
    return joined(_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)));
}
static inline Ints widened(Halves h) {
    __m256i all = (__m256i)h;
    return joined(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(all)),
                  _mm256_cvtepu16_epi32(_mm256_extracti128_si256(all, 1)));
}
#else
static inline Ints widened(Bytes b) { return __builtin_convertvector(b, Ints); }
static inline Ints widened(Halves h) { return __builtin_convertvector(h, Ints); }
#endif

// Step `at` of a matrix: 32 weights of an output. Those of four outputs alternate, so that memory
// is read in its own order while the numbers that all four are multiplied by are at hand.
static inline void weights(const Matrix& m, int64_t at, Vector& a, Vector& b) {
    const char* from = m.weight + at * STEP * BITS / 8;
#if KIND == FLOAT32
    a = read<Vector>(from), b = read<Vector>(from + 4 * WIDTH);
#elif KIND == BFLOAT16
    a = (Vector)(widened(read<Halves>(from)) << 16);
    b = (Vector)(widened(read<Halves>(from + 2 * WIDTH)) << 16);
#elif KIND == FLOAT16
    // The bits of a half moved to where a float has them are the number times 2^-112.
    for (Vector* v : {&a, &b}) {
        Ints bits = widened(read<Halves>(from));
        *v = (Vector)(((bits & 0x7fff) << 13) | ((bits & 0x8000) << 16)) * 0x1p112f;
        from += 2 * WIDTH;
    }
#elif KIND == INT8
    a = __builtin_convertvector(widened(read<Bytes>(from)), Vector);
    b = __builtin_convertvector(widened(read<Bytes>(from + WIDTH)), Vector);
#else
    Ints both = widened(read<Bytes>(from)), group = Ints{} + m.groups[at];
    Vector scale = (Vector)(group & (int32_t)0xffff0000), least = (Vector)(group << 16);
    a = __builtin_convertvector(both & 15, Vector) * scale + least;
    b = __builtin_convertvector((both >> 4) & 15, Vector) * scale + least;
#endif
}

// --- products --------------------------------------------------------------------------------

constexpr int TOGETHER = 4;  // outputs; a matrix has a multiple of this, the last ones being zero

// Outputs `out` to `out + 4` of N rows: each weight is read and converted once.
template <int N>
static void tile(const Matrix& m, int64_t out, const float* x, int64_t xs, float* y, int64_t ys,
                 bool add) {
    // Two sums side by side, since an addition waits for the one before.
    Vector sums[TOGETHER][N][2] = {};
    int64_t steps = m.in / STEP, at = out * steps;
    for (int64_t i = 0; i < m.in; i += STEP) {
        Vector numbers[N][2], a, b;
        for (int n = 0; n < N; n++) {
            numbers[n][0] = read<Vector>(x + n * xs + i);
            numbers[n][1] = read<Vector>(x + n * xs + i + WIDTH);
        }
        for (int o = 0; o < TOGETHER; o++) {
            weights(m, at++, a, b);
            for (int n = 0; n < N; n++) {
                sums[o][n][0] += a * numbers[n][0];
                sums[o][n][1] += b * numbers[n][1];
            }
        }
    }
    float totals[TOGETHER][N];
    for (int o = 0; o < TOGETHER; o++)
        for (int n = 0; n < N; n++) totals[o][n] = sum(sums[o][n][0] + sums[o][n][1]);
    for (int o = 0; o < TOGETHER && out + o < m.out; o++)
        for (int n = 0; n < N; n++) {
            // As one operation, or each instance of this template might round differently.
            float scale = m.scale ? m.scale[out + o] : 1, bias = m.bias ? m.bias[out + o] : 0;
            float value = std::fma(totals[o][n], scale, bias);
            float& target = y[n * ys + out + o];
            target = add ? target + value : value;
        }
}

// y (n, out) = x (n, in) W^T + bias, or += : outputs `begin` to `end`, `begin` a multiple of 4.
static void product(const Matrix& m, int64_t begin, int64_t end, const float* x, int64_t xs, int n,
                    float* y, int64_t ys, bool add = false) {
    for (; begin < end; begin += TOGETHER) {
        int r = 0;
        for (; r + 2 <= n; r += 2) tile<2>(m, begin, x + r * xs, xs, y + r * ys, ys, add);
        if (r < n) tile<1>(m, begin, x + r * xs, xs, y + r * ys, ys, add);
    }
}

// --- threads ---------------------------------------------------------------------------------

extern "C" int omp_get_num_threads();

// Threads that go through the same phases. Who is free takes the next part of a phase, and all go
// on when all parts are done; so one that the system holds up, as others compute on this machine,
// too, does not hold up the rest unless it has a part at hand.
class Team {
  public:
    int size = 1;

    explicit Team(int n_phases) : taken(n_phases), done(n_phases) {}

    // Calls work(begin, end) for parts of `count` things that begin at multiples of `unit`.
    template <class Work>
    void share(int phase, int64_t count, int64_t unit, Work work) {
        int64_t units = (count + unit - 1) / unit, parts = size > 1 ? PARTS * size : 1;
        int64_t length = (units + parts - 1) / parts * unit;
        int n = (int)((count + length - 1) / length);
        for (int i; (i = taken[phase]++) < n; done[phase]++) {
            int64_t end = (i + 1) * length;
            work(i * length, end < count ? end : count);
        }
        for (int spins = 0; done[phase] < n; spins++)
            if (spins > 10000) std::this_thread::yield();
    }

  private:
    static constexpr int PARTS = 4;
    std::vector<std::atomic<int>> taken, done;
};

// Calls work() on each thread of a team.
template <class Work>
static void together(Team& team, int threads, Work work) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        team.size = omp_get_num_threads();
        work();
    }
#else
    work();
#endif
}

// --- the model -------------------------------------------------------------------------------

static int64_t padded(int64_t n) { return (n + STEP - 1) / STEP * STEP; }

static void normalise(int64_t kind, float eps, const Norm& norm, const float* x, int64_t n,
                      float* y) {
    float mean = 0;
    if (kind == LAYERNORM) {
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= n;
    }
    for (int64_t i = 0; i < n; i++) y[i] = x[i] - mean;
    float scale = 1 / std::sqrt(dot(y, y, n) / n + eps);
    for (int64_t i = 0; i < n; i++) y[i] *= scale * norm.gain[i];
    for (int64_t i = 0; norm.bias && i < n; i++) y[i] += norm.bias[i];
}

static void activate(int64_t kind, const float* x, const float* value, int64_t n, float* y) {
    if (kind == SWIGLU)
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * sigmoid(x[i]) * value[i];
    else if (kind == GELU_TANH)  // (1 + tanh z) / 2 is sigmoid(2 z)
        for (int64_t i = 0; i < n; i++)
            y[i] = x[i] * sigmoid(1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
    else
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * 0.5f * (1 + std::erf(x[i] * 0.707106781f));
}

// The norm and rotation of a head of queries or keys, in place.
static void turn(const Model& m, const Norm& norm, int64_t position, float* x, float* spare) {
    if (norm.gain) normalise(RMSNORM, m.eps, norm, x, m.D, x);
    if (!m.cos) return;
    const float *cos = m.cos + position * m.D, *sin = m.sin + position * m.D;
    for (int64_t i = 0, half = m.D / 2; i < m.D; i++)
        spare[i] = x[i] * cos[i] + x[i < half ? i + half : i - half] * sin[i];
    memcpy(x, spare, m.D * sizeof(float));
}

// What a query finds among the keys and values of its row; both lie (S, D).
static void attend(const Model& m, const Row& row, const float* q, const float* keys, float* scores,
                   float* y) {
    const float* values = keys + row.next_values;
    int64_t D = m.D, S = row.place + 1;
    float scale = 1 / std::sqrt((float)D), largest = -INFINITY, total = 0;
    for (int64_t s = row.first; s < S; s++) {
        scores[s] = dot(q, keys + s * D, D) * scale;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (int64_t s = row.first; s < S; s++) scores[s] = exp_of(scores[s] - largest);
    for (int64_t s = row.first; s < S; s++) total += scores[s];
    for (int64_t i = 0; i < D; i++) y[i] = 0;
    for (int64_t s = row.first; s < S; s++)
        for (int64_t i = 0; i < D; i++) y[i] += scores[s] * values[s * D + i];
    for (int64_t i = 0; i < D; i++) y[i] /= total;
}

extern "C" {

// n rows through all layers; x (n, C) is what the head reads. Keys and values are stored.
// Rows may follow each other in one cache: a row sees what those before it stored.
void layers(const Model* model, const Row* rows, int n, float* x, int threads) {
    const Model& m = *model;
    int64_t C = m.C, H = m.H, K = m.K, D = m.D, M = m.M, E = (H + 2 * K) * D;
    int64_t U = m.activation == SWIGLU ? 2 * M : M;  // gate and value side by side
    int64_t cs = padded(C), hs = padded(H * D), ms = padded(M), longest = 0;
    for (int r = 0; r < n; r++) longest = rows[r].place >= longest ? rows[r].place + 1 : longest;
    for (int64_t i = 0; i < n * C; i++) {
        const Row& row = rows[i / C];
        x[i] = m.tokens[row.token * C + i % C];
        if (m.positions) x[i] += m.positions[row.position * C + i % C];
    }
    std::vector<float> heads(n * E), found(n * hs), wide(n * U);
    Team team(6 * m.n_layer);
    together(team, threads, [&] {
        std::vector<float> normed(n * cs), hidden(n * ms), scores(longest + D);
        float* spare = scores.data() + longest;
        auto norm = [&](const Norm& ln) {  // by each thread for itself: cheaper than to wait
            for (int r = 0; r < n; r++)
                normalise(m.norm, m.eps, ln, x + r * C, C, normed.data() + r * cs);
        };
        for (int l = 0, phase = 0; l < m.n_layer; l++) {
            const Layer& layer = m.layers[l];
            norm(layer.ln_1);
            team.share(phase++, E, TOGETHER, [&](int64_t begin, int64_t end) {
                product(layer.qkv, begin, end, normed.data(), cs, n, heads.data(), E);
            });
            team.share(phase++, n * (H + K), 1, [&](int64_t i, int64_t end) {
                for (; i < end; i++) {
                    int64_t r = i / (H + K), h = i % (H + K);
                    float* head = heads.data() + r * E + h * D;
                    turn(m, h < H ? layer.q_norm : layer.k_norm, rows[r].position, head, spare);
                    if (h < H) continue;
                    const Row& row = rows[r];
                    float* key = row.cache + l * row.next_layer + (h - H) * row.next_head;
                    key += row.place * D;
                    memcpy(key, head, D * sizeof(float));
                    memcpy(key + row.next_values, head + K * D, D * sizeof(float));
                }
            });
            team.share(phase++, n * H, 1, [&](int64_t i, int64_t end) {
                for (; i < end; i++) {
                    int64_t r = i / H, h = i % H, head = h / (H / K);
                    const float* q = heads.data() + r * E + h * D;
                    const float* keys = rows[r].cache + l * rows[r].next_layer;
                    keys += head * rows[r].next_head;
                    attend(m, rows[r], q, keys, scores.data(), found.data() + r * hs + h * D);
                }
            });
            team.share(phase++, C, TOGETHER, [&](int64_t begin, int64_t end) {
                product(layer.proj, begin, end, found.data(), hs, n, x, C, true);
            });
            norm(layer.ln_2);
            team.share(phase++, U, TOGETHER, [&](int64_t begin, int64_t end) {
                product(layer.up, begin, end, normed.data(), cs, n, wide.data(), U);
            });
            for (int r = 0; r < n; r++) {
                const float* gate = wide.data() + r * U;
                activate(m.activation, gate, gate + M, M, hidden.data() + r * ms);
            }
            team.share(phase++, C, TOGETHER, [&](int64_t begin, int64_t end) {
                product(layer.down, begin, end, hidden.data(), ms, n, x, C, true);
            });
        }
    });
    std::vector<float> normed(C);
    for (int r = 0; r < n; r++) {
        normalise(m.norm, m.eps, m.ln_f, x + r * C, C, normed.data());
        memcpy(x + r * C, normed.data(), C * sizeof(float));
    }
}

// y (n, out) = x (n, width) W^T + bias.
void linear(const Matrix* m, const float* x, int64_t width, int n, float* y, int threads) {
    std::vector<float> rows(n * m->in);
    for (int r = 0; r < n; r++)
        memcpy(rows.data() + r * m->in, x + r * width, width * sizeof(float));
    Team team(1);
    together(team, threads, [&] {
        team.share(0, m->out, TOGETHER, [&](int64_t begin, int64_t end) {
            product(*m, begin, end, rows.data(), m->in, n, y, m->out);
        });
    });
}
}
