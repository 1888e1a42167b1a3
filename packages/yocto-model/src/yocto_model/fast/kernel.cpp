// A few rows through a GPT, at the speed at which memory gives the weights.
//
// For one token a matrix is read once and used once, so what counts is how few bytes a weight takes
// and that nothing else is waited for; for many, that each weight is converted once. Weights stay
// rounded in memory (KIND says how) and become float32 in registers, where everything is computed:
// no activation is rounded, and a row has the same result, to the bit, alone or beside others. All
// threads go through all layers together, and wait where one needs what the others made.
// layers.py says what is computed.
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
constexpr int OUTPUTS = 2 * WIDTH;  // of a tile, which are computed side by side
constexpr int AHEAD = 2048;  // bytes; memory is asked so early for what will be read
constexpr int STEP = 32;  // inputs are padded with zeros to a multiple of this
typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef int8_t Bytes __attribute__((vector_size(WIDTH)));

extern "C" {
struct Matrix {  // (out / 32, in, 32), padded
    const char* weight;  // int4: a byte holds those of two inputs
    const int32_t* groups;  // int4, (out / 32, in / 32, 32): scale and least weight, bfloat16 each
    const float *scale, *bias;  // of each output, padded; scale only for int8
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

static inline float sum(Eight v) {
    struct { Four low, high; } halves = read<decltype(halves)>(&v);
    Four half = halves.low + halves.high;
    return (half[0] + half[2]) + (half[1] + half[3]);
}

static inline float dot(const float* a, const float* b, int64_t n) {
    Eight even = {}, odd = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        even += read<Eight>(a + i) * read<Eight>(b + i);
        odd += read<Eight>(a + i + 8) * read<Eight>(b + i + 8);
    }
    for (; i + 8 <= n; i += 8) even += read<Eight>(a + i) * read<Eight>(b + i);
    float total = sum(even + odd);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// e^x for x <= 0, right to 2e-7: 2^f by its Taylor series, the whole part into the exponent's bits.
static inline Vector exp_of(Vector x) {
    Vector t = x * 1.44269504f;
    t = t < -126 ? Vector{} - 126 : t;
    Ints whole = __builtin_convertvector(t - 0.5f, Ints);
    Vector f = (t - __builtin_convertvector(whole, Vector)) * 0.693147181f;
    Vector y = 1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f / 720));
    y = 1 + f * (1 + f * (1 / 2.f + f * y));
    return (Vector)((Ints)y + (whole << 23));
}

static inline Vector sigmoid(Vector x) {
    Vector e = exp_of(x < 0 ? x : -x);
    return (x < 0 ? e : Vector{} + 1) / (1 + e);
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

static inline Vector floats(Halves h) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtph_ps((__m256i)h);
#else
    // The bits of a half moved to where a float has them are the number times 2^-112.
    Ints bits = widened(h);
    return (Vector)(((bits & 0x7fff) << 13) | ((bits & 0x8000) << 16)) * 0x1p112f;
#endif
}

// The weights of a tile in order: those of two inputs at a time, as float32.
struct Weights {
    const char* from;
    const int32_t* groups;
    Vector scale[2], least[2];  // int4

    Weights(const Matrix& m, int64_t out, int64_t in)
        : from(m.weight + (out * m.in + in * OUTPUTS) * BITS / 8), groups(m.groups) {
        if (KIND == INT4) groups += (out * m.in + in * OUTPUTS) / STEP;
    }

    void next_group() {  // before each STEP inputs
        for (int v = 0; KIND == INT4 && v < 2; v++, groups += WIDTH) {
            Ints group = read<Ints>(groups);
            scale[v] = (Vector)(group & (int32_t)0xffff0000), least[v] = (Vector)(group << 16);
        }
    }

    void next(Vector w[2][2]) {  // [input][half of the outputs]
        for (int i = 0; i < 8 * BITS; i += 64) __builtin_prefetch(from + AHEAD + i);
#if KIND == INT4
        for (int v = 0; v < 2; v++, from += WIDTH) {
            Ints both = widened(read<Bytes>(from));
            w[0][v] = __builtin_convertvector(both & 15, Vector) * scale[v] + least[v];
            w[1][v] = __builtin_convertvector((both >> 4) & 15, Vector) * scale[v] + least[v];
        }
#else
        for (int i = 0; i < 4; i++, from += WIDTH * BITS / 8) {
            Vector& to = w[i / 2][i % 2];
#if KIND == FLOAT32
            to = read<Vector>(from);
#elif KIND == BFLOAT16
            to = (Vector)(widened(read<Halves>(from)) << 16);
#elif KIND == FLOAT16
            to = floats(read<Halves>(from));
#else
            to = __builtin_convertvector(widened(read<Bytes>(from)), Vector);
#endif
        }
#endif
    }
};

// --- products --------------------------------------------------------------------------------

constexpr int BLOCK = 128;  // inputs of a tile whose weights, as float32, stay in the nearest cache
constexpr int MOST_ROWS = 32;
#ifdef __AVX512F__
constexpr int AT_ONCE = 6;  // rows whose sums fit the registers
#else
constexpr int AT_ONCE = 2;
#endif

// Of a row and the outputs of a tile: the even inputs' and the odd ones', since an addition waits
// for the one before. For any number of rows each sum is taken in the same order.
typedef Vector Sums[2][2];

template <int N, class From>
static void accumulate(From from, int64_t inputs, const float* x, int64_t xs, Sums* sums) {
    Sums s[N];
    memcpy(s, sums, sizeof s);
    for (int64_t group = 0; group < inputs; group += STEP) {
        from.next_group();
        for (int64_t i = group; i < group + STEP; i += 2) {
            Vector w[2][2];
            from.next(w);
            for (int n = 0; n < N; n++)
                for (int p = 0; p < 2; p++) {
                    Vector number = x[n * xs + i + p] - Vector{};
                    s[n][p][0] += w[p][0] * number;
                    s[n][p][1] += w[p][1] * number;
                }
        }
    }
    memcpy(sums, s, sizeof s);
}

template <class From, int N = AT_ONCE>
static void accumulate_rows(int n, From from, int64_t inputs, const float* x, int64_t xs,
                            Sums* sums) {
    for (; n >= N; n -= N, x += N * xs, sums += N) accumulate<N>(from, inputs, x, xs, sums);
    if constexpr (N > 1) accumulate_rows<From, N - 1>(n, from, inputs, x, xs, sums);
}

struct Converted {
    const float* from;
    const char* ahead;  // the next block, which memory brings meanwhile

    void next_group() {}
    void next(Vector w[2][2]) {
        for (int i = 0; i < 4; i++, from += WIDTH) w[i / 2][i % 2] = read<Vector>(from);
        for (int i = 0; i < 8 * BITS; i += 64) __builtin_prefetch(ahead + i);
        ahead += 8 * BITS;
    }
};

// The outputs of a tile for n rows. For many, its weights are converted once.
static void tile(const Matrix& m, int64_t out, const float* x, int64_t xs, int n, float* y,
                 int64_t ys, bool add) {
    Sums sums[MOST_ROWS];
    memset(sums, 0, n * sizeof(Sums));
    if (n <= AT_ONCE) accumulate_rows(n, Weights(m, out, 0), m.in, x, xs, sums);
    for (int64_t in = 0; n > AT_ONCE && in < m.in; in += BLOCK) {
        int64_t inputs = m.in - in < BLOCK ? m.in - in : BLOCK;
        Weights weights(m, out, in);
        alignas(64) Vector block[BLOCK * 2];
        for (int64_t i = 0; KIND != FLOAT32 && i < inputs; i += 2) {
            if (i % STEP == 0) weights.next_group();
            weights.next((Vector(*)[2])(block + i * 2));
        }
        const char* ahead = weights.from + (KIND == FLOAT32 ? BLOCK * OUTPUTS * 4 : 0);
        const void* floats = KIND == FLOAT32 ? (const void*)weights.from : block;
        accumulate_rows(n, Converted{(const float*)floats, ahead}, inputs, x + in, xs, sums);
    }
    int64_t count = m.out - out < OUTPUTS ? m.out - out : OUTPUTS;
    for (int r = 0; r < n; r++, y += ys)
        for (int64_t v = 0, o = out; v < 2 && o < out + count; v++, o += WIDTH) {
            Vector value = sums[r][0][v] + sums[r][1][v], old = {};
            int64_t size = 4 * (out + count - o < WIDTH ? out + count - o : WIDTH);
            if (m.scale) value *= read<Vector>(m.scale + o);
            if (m.bias) value += read<Vector>(m.bias + o);
            if (add) memcpy(&old, y + o, size), value += old;
            memcpy(y + o, &value, size);
        }
}

// y (n, out) = x (n, in) W^T + bias, or += : outputs `begin` to `end`, `begin` the first of a tile.
static void product(const Matrix& m, int64_t begin, int64_t end, const float* x, int64_t xs, int n,
                    float* y, int64_t ys, bool add = false) {
    for (; begin < end; begin += OUTPUTS) tile(m, begin, x, xs, n, y, ys, add);
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

// y[i] = f(x[i], value[i]), some at a time.
template <class F>
static void each(const float* x, const float* value, int64_t n, float* y, F f) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        Vector a = {}, b = {};
        int64_t size = 4 * (n - i < WIDTH ? n - i : WIDTH);
        memcpy(&a, x + i, size), memcpy(&b, value + i, size);
        a = f(a, b);
        memcpy(y + i, &a, size);
    }
}

static void activate(int64_t kind, const float* x, const float* value, int64_t n, float* y) {
    if (kind == SWIGLU)
        each(x, value, n, y, [](Vector a, Vector b) { return a * sigmoid(a) * b; });
    else if (kind == GELU_TANH)  // (1 + tanh z) / 2 is sigmoid(2 z)
        each(x, x, n, y, [](Vector a, Vector) {
            return a * sigmoid(1.59576912f * (a + 0.044715f * a * a * a));
        });
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
    int64_t D = m.D, S = row.place + 1 - row.first;  // from the first on that is not hidden
    keys += row.first * D;
    const float* values = keys + row.next_values;
    float scale = 1 / std::sqrt((float)D), largest = -INFINITY, total = 0;
    for (int64_t s = 0; s < S; s++) {
        scores[s] = dot(q, keys + s * D, D) * scale;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    each(scores, scores, S, scores, [=](Vector a, Vector) { return exp_of(a - largest); });
    for (int64_t s = 0; s < S; s++) total += scores[s];
    for (int64_t i = 0; i < D; i++) y[i] = 0;
    for (int64_t s = 0; s < S; s++)
        for (int64_t i = 0; i < D; i++) y[i] += scores[s] / total * values[s * D + i];
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
    std::vector<float> heads(n * E), found(n * hs), wide(n * U), hidden(n * ms);
    Team team(7 * m.n_layer);
    together(team, threads, [&] {
        std::vector<float> normed(n * cs), scores(longest + D);
        float* spare = scores.data() + longest;
        auto norm = [&](const Norm& ln) {  // by each thread for itself: cheaper than to wait
            for (int r = 0; r < n; r++)
                normalise(m.norm, m.eps, ln, x + r * C, C, normed.data() + r * cs);
        };
        for (int l = 0, phase = 0; l < m.n_layer; l++) {
            const Layer& layer = m.layers[l];
            norm(layer.ln_1);
            team.share(phase++, E, OUTPUTS, [&](int64_t begin, int64_t end) {
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
            team.share(phase++, C, OUTPUTS, [&](int64_t begin, int64_t end) {
                product(layer.proj, begin, end, found.data(), hs, n, x, C, true);
            });
            norm(layer.ln_2);
            team.share(phase++, U, OUTPUTS, [&](int64_t begin, int64_t end) {
                product(layer.up, begin, end, normed.data(), cs, n, wide.data(), U);
            });
            team.share(phase++, n, 1, [&](int64_t r, int64_t end) {
                for (; r < end; r++) {
                    const float* gate = wide.data() + r * U;
                    activate(m.activation, gate, gate + M, M, hidden.data() + r * ms);
                }
            });
            team.share(phase++, C, OUTPUTS, [&](int64_t begin, int64_t end) {
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
        team.share(0, m->out, OUTPUTS, [&](int64_t begin, int64_t end) {
            product(*m, begin, end, rows.data(), m->in, n, y, m->out);
        });
    });
}
}
