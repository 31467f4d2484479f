// A step of decoding as one call: what `native.py` describes, for a processor with vector instructions.
//
// All products have 16 outputs to a vector and sum each of them for itself, in the order of the inputs. So what a row
// gives does not depend on how many rows are computed with it, nor on the number of threads. No operation is reordered
// or fused that is not fused here (-ffp-contract=off).
//
// Threads are OpenMP's. Every thread runs through the same loops, whose iterations are shared out as threads get free.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16, GROUP = 32, KEYS = 32;  // of a vector; inputs that share a scale; keys of a block
constexpr int HALF_ROWS = 12, INTEGER_ROWS = 6;   // rows of a tile: two sums for each in registers
constexpr int CHUNK = 96;                         // rows that pass over a pair of tiles while it is in the cache
constexpr int FEW = 4;
constexpr float NOTHING = -1e30f;

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef int8_t B __attribute__((vector_size(16)));
typedef uint16_t H __attribute__((vector_size(32)));

template <class V> inline V load(const void* from) {
  V loaded;
  std::memcpy(&loaded, from, sizeof loaded);
  return loaded;
}

template <class V> inline void store(void* to, V what) { std::memcpy(to, &what, sizeof what); }

inline F all(float x) { return F{} + x; }

inline F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}

// acc + the two products of each lane's pair in bf16
inline F dot_half(F acc, U w, uint32_t x) {
#if defined(__AVX512BF16__)
  return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
#else
  const U pair = U{} + x;
  acc = fma((F)(w << 16), (F)(pair << 16), acc);
  return fma((F)(w & 0xffff0000u), (F)(pair & 0xffff0000u), acc);
#endif
}

// acc + the four products of each lane's unsigned bytes with the signed bytes of x
inline I dot_bytes(I acc, U w, uint32_t x) {
#if defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32((int)x));
#else
  for (int byte = 0; byte < 4; ++byte)
    acc += (I)((w >> (8 * byte)) & 255u) * (int32_t)(int8_t)(x >> (8 * byte));
  return acc;
#endif
}

inline F widened(const uint16_t* half) { return (F)(__builtin_convertvector(load<H>(half), U) << 16); }

inline uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void narrow(F x, uint16_t* to) {
  U bits = (U)x;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  store(to, __builtin_convertvector(bits, H));
}

inline float highest(F x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int lane = 1; lane < LANES; ++lane) most = x[lane] > most ? x[lane] : most;
  return most;
#endif
}

inline float sum(F x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);  // halves, as below
#else
  float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
#endif
}

// Of numbers without their signs; what is no number is above all that are one.
inline float largest(I bits) {
  int32_t most = 0;
#if defined(__AVX512F__)
  most = _mm512_reduce_max_epi32((__m512i)bits);
#else
  for (int lane = 0; lane < LANES; ++lane) most = bits[lane] > most ? bits[lane] : most;
#endif
  float found;
  std::memcpy(&found, &most, 4);
  return found;
}

inline int32_t total_of(I x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += x[lane];
  return total;
#endif
}

inline F rounded(F x) { return (x + 12582912.0f) - 12582912.0f; }  // to whole numbers, for |x| < 2^22

inline F exponential(F x) {  // relative error below 2e-7 for -87 < x < 88, 0 below
  const F turns = rounded((x > 88.0f ? all(88.0f) : x) * 1.44269504f);
  const F rest = fma(turns, all(-1.42860677e-6f), fma(turns, all(-0.693145752f), x > 88.0f ? all(88.0f) : x));
  F power = all(1.0f / 720);
  power = fma(power, rest, all(1.0f / 120));
  power = fma(power, rest, all(1.0f / 24));
  power = fma(power, rest, all(1.0f / 6));
  power = fma(power, rest, all(0.5f));
  power = fma(power, rest, all(1.0f));
  power = fma(power, rest, all(1.0f));
  const F scale = (F)((__builtin_convertvector(turns, I) + 127) << 23);
  return x < -87.0f ? all(0.0f) : power * scale;
}

}  // namespace

extern "C" {

// A matrix (outputs, inputs): for each 16 outputs, and for each
// * pair of inputs, 16 pairs in bf16 (bits 16)
// * group of 32 inputs, 8 times 16 times 4 bytes, a code plus 128 each; 16 scales in bf16 (bits 8)
// * group of 32 inputs, 4 times 16 times 4 bytes of two codes, that of the input 16 places on above; 16 scales and 16
//   offsets in bf16, where a weight is (code - 8) * scale + offset (bits 4)
struct Matrix {
  int32_t bits, inputs, outputs, tiles;  // inputs: whole groups; tiles: an even number
  const void* codes;
  const uint16_t* scales;
  const float* bias;
};

struct Layer {
  const float *attention_norm, *feedforward_norm, *query_norm, *key_norm;
  Matrix joined, output, gate_up, down;
  int32_t window;
  const float *cosines, *sines;  // (context, turned)
};

struct Network {
  int32_t layers, width, heads, groups, head_width, inner, turned;
  float epsilon, scale;
  const Layer* layer;
  const float* final_norm;
  Matrix head;
};

struct Step {
  int32_t threads, tokens, chunks, most, due;  // most: blocks of a row of `table`
  float* x;                                    // (tokens, width), written over
  const int32_t *positions, *first, *count;    // (tokens,), (chunks,), (chunks,)
  const int32_t* table;                        // (chunks, most)
  uint16_t *keys, *values;                     // (layers, blocks, groups, block)
  int64_t blocks;
  const int32_t* ends;  // (due,) the tokens whose logits are asked for
  float* logits;        // (due, outputs of the head)
};
}

namespace {

// Rows as a matrix reads them, group after group of the inputs of up to CHUNK rows: bf16, or bytes with a scale for each
// row's group, and what else its products need: where they start, so that the matrix may have unsigned codes, and what
// its offsets are multiplied by.
struct Rows {
  int bits, groups, side_by_side;
  std::vector<uint16_t> half;
  std::vector<int8_t> codes;
  std::vector<float> scales, sums;
  std::vector<int32_t> starts;

  void shape(int bits_, int rows, int width) {
    bits = bits_;
    groups = width / GROUP;
    side_by_side = rows < CHUNK ? rows : CHUNK;
    const size_t number = (size_t)(rows + CHUNK - 1) / CHUNK * side_by_side * groups;
    if (bits == 16) {
      half.resize(number * GROUP);
    } else {
      codes.resize(number * GROUP);
      scales.resize(number);
      sums.resize(number);
      starts.resize(number);
    }
  }

  size_t place(int row, int group) const { return ((size_t)(row / CHUNK) * groups + group) * side_by_side + row % CHUNK; }

  void put(int row, int column, const float* x, int number) {
    for (int i = 0; i < number; i += GROUP) {
      const size_t to = place(row, (column + i) / GROUP);
      if (bits == 16)
        for (int j = 0; j < GROUP; j += LANES) narrow(load<F>(x + i + j), &half[to * GROUP + j]);
      else
        round(to, x + i);
    }
  }

  void round(size_t group, const float* x) {
    I size{}, total{};
    for (int j = 0; j < GROUP; j += LANES) {
      const I magnitude = load<I>(x + j) & 0x7fffffff;
      size = size > magnitude ? size : magnitude;
    }
    const float most = largest(size);
    const F inverse = all(most > 0 ? 127.0f / most : 0.0f);
    for (int j = 0; j < GROUP; j += LANES) {
      const I whole = __builtin_convertvector(rounded(load<F>(x + j) * inverse), I);
      store(&codes[group * GROUP + j], __builtin_convertvector(whole, B));
      total += whole;
    }
    const int32_t sum_of_codes = total_of(total);
    scales[group] = most / 127.0f;
    sums[group] = scales[group] * (float)sum_of_codes;
    starts[group] = (bits == 8 ? -128 : -8) * sum_of_codes;
  }
};

// acc[r] = the products of row r's pairs with two tiles of 16 outputs; what lies `ahead` of them is fetched meanwhile
template <int R>
inline void multiply(const uint32_t* a, const uint32_t* b, int pairs, const uint32_t* const* x, F (*acc)[2], size_t ahead = 0) {
  F own[R][2];
  for (int r = 0; r < R; ++r) own[r][0] = own[r][1] = F{};
  for (int pair = 0; pair < pairs; ++pair) {
    const U first = load<U>(a + pair * LANES), second = load<U>(b + pair * LANES);
    __builtin_prefetch(a + pair * LANES + ahead, 0, 2);
    __builtin_prefetch(b + pair * LANES + ahead, 0, 2);
    for (int r = 0; r < R; ++r) {
      own[r][0] = dot_half(own[r][0], first, x[r][pair]);
      own[r][1] = dot_half(own[r][1], second, x[r][pair]);
    }
  }
  for (int r = 0; r < R; ++r) acc[r][0] = own[r][0], acc[r][1] = own[r][1];
}

// The same of rows that lie as a matrix reads them
template <int R>
inline void multiply_half(const Matrix& m, int a, int b, const Rows& rows, int row, F (*acc)[2], int ahead) {
  constexpr int PAIRS = GROUP / 2;
  const uint32_t* codes[2];
  for (int t = 0; t < 2; ++t) codes[t] = (const uint32_t*)m.codes + (size_t)(t ? b : a) * rows.groups * PAIRS * LANES;
  const uint32_t* x = (const uint32_t*)&rows.half[rows.place(row, 0) * GROUP];
  const size_t next = (size_t)ahead * rows.groups * PAIRS * LANES, stride = (size_t)rows.side_by_side * PAIRS;
  F own[R][2];
  for (int r = 0; r < R; ++r) own[r][0] = own[r][1] = F{};
  for (int g = 0; g < rows.groups; ++g, x += stride, codes[0] += PAIRS * LANES, codes[1] += PAIRS * LANES) {
#pragma GCC unroll 4
    for (int pair = 0; pair < PAIRS; ++pair) {
      const U first = load<U>(codes[0] + pair * LANES), second = load<U>(codes[1] + pair * LANES);
      for (int t = 0; t < 2; ++t) __builtin_prefetch(codes[t] + next + pair * LANES, 0, 2);
      for (int r = 0; r < R; ++r) {
        own[r][0] = dot_half(own[r][0], first, x[r * PAIRS + pair]);
        own[r][1] = dot_half(own[r][1], second, x[r * PAIRS + pair]);
      }
    }
  }
  for (int r = 0; r < R; ++r) acc[r][0] = own[r][0], acc[r][1] = own[r][1];
}

template <int BITS, int R>
inline void multiply_integers(const Matrix& m, int a, int b, const Rows& rows, int row, F (*acc)[2], int ahead) {
  constexpr int BYTES = GROUP * LANES * BITS / 8, STEPS = BYTES / 64, SCALES = BITS == 8 ? 1 : 2;
  const uint8_t* codes[2];
  const uint16_t* scales[2];
  for (int t = 0; t < 2; ++t) {
    const size_t start = (size_t)(t ? b : a) * rows.groups;
    codes[t] = (const uint8_t*)m.codes + start * BYTES;
    scales[t] = m.scales + start * SCALES * LANES;
  }
  const size_t next = (size_t)ahead * rows.groups;
  F own[R][2];
  for (int r = 0; r < R; ++r) own[r][0] = own[r][1] = F{};
  for (int g = 0; g < rows.groups; ++g) {
    const size_t place = rows.place(row, g);
    const uint8_t* x = (const uint8_t*)&rows.codes[place * GROUP];
    I total[R][2];
    if (ahead)
      for (int t = 0; t < 2; ++t) {
        for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(codes[t] + next * BYTES + i, 0, 2);
        __builtin_prefetch(scales[t] + next * SCALES * LANES, 0, 2);
      }
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = I{} + rows.starts[place + r];
    for (int step = 0; step < STEPS; ++step) {
      U w[2];
      for (int t = 0; t < 2; ++t) w[t] = load<U>(codes[t] + step * 64);
      for (int r = 0; r < R; ++r) {
        const uint32_t some = load<uint32_t>(x + r * GROUP + 4 * step);
        for (int t = 0; t < 2; ++t) total[r][t] = dot_bytes(total[r][t], BITS == 8 ? w[t] : w[t] & 0x0f0f0f0fu, some);
      }
      if (BITS == 4)
        for (int r = 0; r < R; ++r) {
          const uint32_t some = load<uint32_t>(x + r * GROUP + 4 * (step + 4));
          for (int t = 0; t < 2; ++t) total[r][t] = dot_bytes(total[r][t], (w[t] >> 4) & 0x0f0f0f0fu, some);
        }
    }
    for (int t = 0; t < 2; ++t) {
      const F scale = widened(scales[t]);
      F offset{};
      if (BITS == 4) offset = widened(scales[t] + LANES);
      for (int r = 0; r < R; ++r) {
        own[r][t] = fma(__builtin_convertvector(total[r][t], F), scale * rows.scales[place + r], own[r][t]);
        if (BITS == 4) own[r][t] = fma(offset, all(rows.sums[place + r]), own[r][t]);
      }
      codes[t] += BYTES;
      scales[t] += SCALES * LANES;
    }
  }
  for (int r = 0; r < R; ++r) acc[r][0] = own[r][0], acc[r][1] = own[r][1];
}

// what(R) with the number as a constant
template <int MOST, int R = 1, class What> inline void with_rows(int number, What&& what) {
  if constexpr (R <= MOST) {
    if (number == R)
      what(std::integral_constant<int, R>());
    else
      with_rows<MOST, R + 1>(number, what);
  }
}

// The products of some rows with the tiles a and b: end(row, first 16, second 16). The next ones are `ahead` tiles on.
template <class End> void product(const Matrix& m, int a, int b, const Rows& rows, int from, int to, int ahead, End&& end) {
  const int most = m.bits == 16 ? HALF_ROWS : INTEGER_ROWS;
  const int parts = (to - from + most - 1) / most;
  for (int part = 0; part < parts; ++part) {
    const int row = from + (int)((int64_t)(to - from) * part / parts);
    const int number = from + (int)((int64_t)(to - from) * (part + 1) / parts) - row;
    F acc[HALF_ROWS][2];
    if (part || (m.bits == 16 && number == 1)) ahead = 0;  // the processor sees where a single row of them leads
    if (m.bits == 16) {
      with_rows<HALF_ROWS>(number, [&](auto n) { multiply_half<n>(m, a, b, rows, row, acc, ahead); });
    } else if (m.bits == 8) {
      with_rows<INTEGER_ROWS>(number, [&](auto n) { multiply_integers<8, n>(m, a, b, rows, row, acc, ahead); });
    } else {
      with_rows<INTEGER_ROWS>(number, [&](auto n) { multiply_integers<4, n>(m, a, b, rows, row, acc, ahead); });
    }
    for (int r = 0; r < number; ++r) end(row + r, acc[r][0], acc[r][1]);
  }
}

// What all threads run through: every output of every row, by pairs of tiles. A tile's second one is `partner` on; of so
// many rows a thread computes pair after pair, `each` of them.
template <class End> void product(const Matrix& m, const Rows& rows, int number, int partner, int each, End&& end) {
  const int tasks = m.tiles / 2 / each, chunks = (number + CHUNK - 1) / CHUNK;
  // Long stretches first, for neighbours are what is fetched ahead, and ever shorter ones, so that all end together.
#pragma omp for schedule(guided)
  for (int task = 0; task < tasks * chunks; ++task) {
    const int from = task % chunks * CHUNK, to = from + CHUNK < number ? from + CHUNK : number;
    for (int pair = task / chunks * each; pair < (task / chunks + 1) * each; ++pair) {
      const int a = partner == 1 ? 2 * pair : pair, b = a + partner;
      product(m, a, b, rows, from, to, partner == 1 ? 2 : 1, [&](int row, F first, F second) {
        if (m.bias) first += load<F>(m.bias + a * LANES), second += load<F>(m.bias + b * LANES);
        end(row, a, first, second);
      });
    }
  }
}

void put(float* to, int column, int outputs, F what) {
  if (column + LANES <= outputs)
    store(to + column, what);
  else
    for (int lane = 0; column + lane < outputs; ++lane) to[column + lane] = what[lane];
}

void normalise(const float* x, const float* weight, int width, float epsilon, float* to) {
  F squares{};
  for (int i = 0; i < width; i += LANES) squares = fma(load<F>(x + i), load<F>(x + i), squares);
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)width + epsilon);
  for (int i = 0; i < width; i += LANES) store(to + i, load<F>(x + i) * scale * load<F>(weight + i));
}

void rotate(float* x, const float* cosines, const float* sines, int turned) {
  const int half = turned / 2;
  for (int i = 0; i < half; ++i) {
    const float low = x[i], high = x[i + half];
    x[i] = low * cosines[i] + high * sines[i];
    x[i + half] = high * cosines[i + half] + low * sines[i + half];
  }
}

struct Tile {
  int chunk, group, start, number;  // some of the (token, head) pairs that read one head of keys
};

struct Room {  // kept between the steps
  std::vector<float> heads;
  std::vector<uint16_t> queries;
  Rows rows, seen, inner, last;
  std::vector<Tile> tiles;
  std::vector<int32_t> chunk_of;
  bool alone;  // whether each tile is all of its row that reads its head of keys
};

// The attention of one tile's queries over the blocks of their row (softmax as it goes: Milakov and Gimelshein 2018)
void attend(const Network& net, const Layer& layer, const Step& step, const Tile& tile, const uint16_t* keys,
            const uint16_t* values, Room& room) {
  const int width = net.head_width, share = net.heads / net.groups, across = net.heads * width;
  const uint32_t *query[HALF_ROWS], *weights[HALF_ROWS];
  int position[HALF_ROWS], row[HALF_ROWS], column[HALF_ROWS], lowest = INT32_MAX, last = 0;
  alignas(64) uint16_t weight[HALF_ROWS][KEYS];
  alignas(64) float seen[HALF_ROWS][256];
  float most[HALF_ROWS];
  F total[HALF_ROWS], acc[HALF_ROWS][2];
  for (int r = 0; r < tile.number; ++r) {
    row[r] = step.first[tile.chunk] + (tile.start + r) / share;
    column[r] = (tile.group * share + (tile.start + r) % share) * width;
    query[r] = (const uint32_t*)&room.queries[(size_t)row[r] * across + column[r]];
    weights[r] = (const uint32_t*)weight[r];
    position[r] = step.positions[row[r]];
    lowest = position[r] < lowest ? position[r] : lowest;
    last = position[r] > last ? position[r] : last;
    most[r] = NOTHING;
    total[r] = F{};
    std::memset(seen[r], 0, sizeof(float) * width);
  }
  const int window = layer.window > 0 ? layer.window : INT32_MAX;
  const int begin = lowest - window + 1 > 0 ? (lowest - window + 1) / KEYS : 0;
  I lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  for (int block = begin; block <= last / KEYS; ++block) {
    const auto place = [&](int which) {
      return ((size_t)step.table[tile.chunk * step.most + which] * net.groups + tile.group) * KEYS * width;
    };
    const uint32_t *key = (const uint32_t*)(keys + place(block)), *value = (const uint32_t*)(values + place(block));
    const uint32_t* next = block < last / KEYS ? (const uint32_t*)(keys + place(block + 1)) : value;
    with_rows<HALF_ROWS>(tile.number, [&](auto n) {
      multiply<n>(key, key + width / 2 * LANES, width / 2, query, acc, value - key);
    });
    float factor[HALF_ROWS];
    for (int r = 0; r < tile.number; ++r) {
      F scores[2];
      I allowed[2];
      for (int t = 0; t < 2; ++t) {
        const I where = lanes + (block * KEYS + t * LANES);
        allowed[t] = (where <= position[r]) & (position[r] - where < window);
        scores[t] = allowed[t] ? acc[r][t] * net.scale : all(NOTHING);
      }
      const float now = highest(scores[0] > scores[1] ? scores[0] : scores[1]);
      const float highest_now = now > most[r] ? now : most[r];
      factor[r] = exponential(all(most[r] - highest_now))[0];
      most[r] = highest_now;
      F sums = total[r] * factor[r];
      for (int t = 0; t < 2; ++t) {
        const F shares = allowed[t] ? exponential(scores[t] - highest_now) : all(0.0f);
        sums += shares;
        narrow(shares, weight[r] + t * LANES);
      }
      total[r] = sums;
    }
    for (int i = 0; i < width; i += 2 * LANES) {
      const uint32_t* some = value + i / LANES * (KEYS / 2) * LANES;
      with_rows<HALF_ROWS>(tile.number, [&](auto n) {
        multiply<n>(some, some + KEYS / 2 * LANES, KEYS / 2, weights, acc, next - value);
      });
      for (int r = 0; r < tile.number; ++r)
        for (int t = 0; t < 2; ++t) {
          float* to = seen[r] + i + t * LANES;
          store(to, fma(load<F>(to), all(factor[r]), acc[r][t]));
        }
    }
  }
  for (int r = 0; r < tile.number; ++r) {
    const float inverse = 1.0f / sum(total[r]);
    for (int i = 0; i < width; i += LANES) store(seen[r] + i, load<F>(seen[r] + i) * inverse);
    room.seen.put(row[r], column[r], seen[r], width);
  }
}

// A token's heads that share one of keys: turned; queries kept for the attention, key and value put into their block
void place_heads(const Network& net, const Layer& layer, const Step& step, int token, int group, uint16_t* keys,
                 uint16_t* values, Room& room) {
  const int width = net.head_width, share = net.heads / net.groups, position = step.positions[token];
  float* heads = &room.heads[(size_t)token * (net.heads + 2 * net.groups) * width];
  const float* cosines = layer.cosines + (size_t)position * net.turned;
  const float* sines = layer.sines + (size_t)position * net.turned;
  const int slot = position % KEYS, block = step.table[room.chunk_of[token] * step.most + position / KEYS];
  const size_t place = ((size_t)block * net.groups + group) * KEYS * width;
  for (int head = group * share; head < (group + 1) * share; ++head) {
    float* x = heads + (size_t)head * width;
    if (layer.query_norm) normalise(x, layer.query_norm, width, net.epsilon, x);
    rotate(x, cosines, sines, net.turned);
    uint16_t* query = &room.queries[((size_t)token * net.heads + head) * width];
    for (int i = 0; i < width; i += LANES) narrow(load<F>(x + i), query + i);
  }
  float* key = heads + (size_t)(net.heads + group) * width;
  const float* value = key + (size_t)net.groups * width;
  if (layer.key_norm) normalise(key, layer.key_norm, width, net.epsilon, key);
  rotate(key, cosines, sines, net.turned);
  for (int i = 0; i < width; ++i) {
    keys[place + ((size_t)(slot / LANES * (width / 2) + i / 2) * LANES + slot % LANES) * 2 + i % 2] = narrowed(key[i]);
    values[place + ((size_t)(i / LANES * (KEYS / 2) + slot / 2) * LANES + i % LANES) * 2 + slot % 2] = narrowed(value[i]);
  }
}

void plan(const Network& net, const Step& step, Room& room) {
  const int share = net.heads / net.groups, width = net.head_width;
  room.heads.resize((size_t)step.tokens * (net.heads + 2 * net.groups) * width);
  room.queries.resize((size_t)step.tokens * net.heads * width);
  room.chunk_of.resize(step.tokens);
  room.tiles.clear();
  for (int chunk = 0; chunk < step.chunks; ++chunk) {
    const int number = step.count[chunk] * share;
    for (int i = 0; i < step.count[chunk]; ++i) room.chunk_of[step.first[chunk] + i] = chunk;
    for (int start = (number - 1) / HALF_ROWS * HALF_ROWS; start >= 0; start -= HALF_ROWS)  // the longest first
      for (int group = 0; group < net.groups; ++group)
        room.tiles.push_back({chunk, group, start, number - start < HALF_ROWS ? number - start : HALF_ROWS});
  }
  const Layer& layer = net.layer[0];  // all have its types
  room.rows.shape(layer.joined.bits, step.tokens, net.width);
  room.seen.shape(layer.output.bits, step.tokens, net.heads * width);
  room.inner.shape(layer.down.bits, step.tokens, net.inner);
  room.last.shape(net.head.bits, step.due, net.width);
  room.alone = (int)room.tiles.size() == step.chunks * net.groups;
}

}  // namespace

extern "C" void chatloom_step(const Network* network, const Step* given) {
  static thread_local Room room_of_the_caller;
  Room& room = room_of_the_caller;
  const Network& net = *network;
  const Step& step = *given;
  const int tokens = step.tokens, width = net.width;
  plan(net, step, room);
#pragma omp parallel num_threads(step.threads)
  {
    static thread_local Rows rows_of_a_thread;
    const bool few = tokens <= FEW;  // then each thread has them normalised sooner than it hears of it from another
    Rows& rows = few ? rows_of_a_thread : room.rows;
    if (few) rows.shape(room.rows.bits, tokens, width);
    std::vector<float> own(width), gated((size_t)CHUNK * GROUP);
    const auto normalised = [&](const float* weight) {
      const auto put = [&](int token) {
        normalise(step.x + (size_t)token * width, weight, width, net.epsilon, own.data());
        rows.put(token, 0, own.data(), width);
      };
      if (few) {
        for (int token = 0; token < tokens; ++token) put(token);
      } else {
#pragma omp for
        for (int token = 0; token < tokens; ++token) put(token);
      }
    };
    for (int number = 0; number < net.layers; ++number) {
      const Layer& layer = net.layer[number];
      const size_t start = (size_t)number * step.blocks * net.groups * KEYS * net.head_width;
      normalised(layer.attention_norm);
      product(layer.joined, rows, tokens, 1, 1, [&](int row, int tile, F first, F second) {
        float* to = &room.heads[(size_t)row * layer.joined.outputs + tile * LANES];
        store(to, first);
        store(to + LANES, second);
      });
      const auto place = [&](int token, int group) {
        place_heads(net, layer, step, token, group, step.keys + start, step.values + start, room);
      };
      if (!room.alone) {
#pragma omp for
        for (int task = 0; task < tokens * net.groups; ++task) place(task / net.groups, task % net.groups);
      }
#pragma omp for schedule(dynamic)
      for (int number = 0; number < (int)room.tiles.size(); ++number) {
        const Tile& tile = room.tiles[number];
        if (room.alone)
          for (int i = 0; i < step.count[tile.chunk]; ++i) place(step.first[tile.chunk] + i, tile.group);
        attend(net, layer, step, tile, step.keys + start, step.values + start, room);
      }
      const auto add = [&](int row, int tile, F first, F second) {
        float* to = step.x + (size_t)row * width + tile * LANES;
        store(to, load<F>(to) + first);
        store(to + LANES, load<F>(to + LANES) + second);
      };
      product(layer.output, room.seen, tokens, 1, 1, add);
      normalised(layer.feedforward_norm);
      product(layer.gate_up, rows, tokens, net.inner / LANES, 2, [&](int row, int tile, F gate, F up) {
        float* group = &gated[(size_t)(row % CHUNK) * GROUP];  // which the thread's next pair completes
        store(group + tile % 2 * LANES, gate / (1.0f + exponential(-gate)) * up);
        if (tile % 2) room.inner.put(row, (tile - 1) * LANES, group, GROUP);
      });
      product(layer.down, room.inner, tokens, 1, 1, add);
    }
#pragma omp for
    for (int row = 0; row < step.due; ++row) {
      normalise(step.x + (size_t)step.ends[row] * width, net.final_norm, width, net.epsilon, own.data());
      room.last.put(row, 0, own.data(), width);
    }
    product(net.head, room.last, step.due, 1, 1, [&](int row, int tile, F first, F second) {
      float* to = step.logits + (size_t)row * net.head.outputs;
      put(to, tile * LANES, net.head.outputs, first);
      put(to, (tile + 1) * LANES, net.head.outputs, second);
    });
  }
}

// (rows, inputs) times a matrix: (rows, outputs)
extern "C" void chatloom_product(const Matrix* matrix, const float* x, int32_t number, float* to, int32_t threads) {
  static thread_local Rows rows_of_the_caller;
  Rows& rows = rows_of_the_caller;
  const Matrix& m = *matrix;
  rows.shape(m.bits, number, m.inputs);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int row = 0; row < number; ++row) rows.put(row, 0, x + (size_t)row * m.inputs, m.inputs);
    product(m, rows, number, 1, 1, [&](int row, int tile, F first, F second) {
      put(to + (size_t)row * m.outputs, tile * LANES, m.outputs, first);
      put(to + (size_t)row * m.outputs, (tile + 1) * LANES, m.outputs, second);
    });
  }
}

// A token of each row of logits (rows, vocabulary): the likeliest where the temperature is 0, else the first whose
// share of exp(logit / temperature), added up from the first token on, exceeds the row's uniform number.
extern "C" void chatloom_sample(const float* logits, int32_t rows, int32_t vocabulary, const float* uniforms,
                                const float* temperatures, int64_t* tokens, float* logprobs, int32_t threads) {
  const int whole = vocabulary / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int row = 0; row < rows; ++row) {
    const float* x = logits + (size_t)row * vocabulary;
    const bool greedy = temperatures[row] == 0;
    const float inverse = greedy ? 1.0f : 1.0f / temperatures[row];
    F high = all(x[0]);
    for (int i = 0; i < whole; i += LANES) high = load<F>(x + i) > high ? load<F>(x + i) : high;
    float most = highest(high);
    for (int i = whole; i < vocabulary; ++i) most = x[i] > most ? x[i] : most;
    const auto weights = [&](int i) {  // of 16 tokens, or what is left of them
      if (i < whole) return exponential((load<F>(x + i) - most) * inverse);
      float some[LANES];
      for (int lane = 0; lane < LANES; ++lane) some[lane] = i + lane < vocabulary ? x[i + lane] : -__builtin_inff();
      return exponential((load<F>(some) - most) * inverse);
    };
    double total = 0;  // of blocks, so that the draw finds its block before its token
    constexpr int BLOCK = 64 * LANES;
    for (int i = 0; i < vocabulary; i += BLOCK) {
      F part{};
      for (int j = i; j < i + BLOCK && j < vocabulary; j += LANES) part += weights(j);
      total += sum(part);
    }
    int token = 0;
    if (greedy) {
      while (token < vocabulary - 1 && x[token] != most) ++token;
    } else {
      const double aim = uniforms[row] * total;
      double before = 0;
      int last = 0;  // token that has a weight
      token = -1;
      for (int i = 0; i < vocabulary && token < 0; i += BLOCK) {
        F part{};
        for (int j = i; j < i + BLOCK && j < vocabulary; j += LANES) part += weights(j);
        if (before + sum(part) <= aim && i + BLOCK < vocabulary) {
          before += sum(part);
          continue;
        }
        for (int j = i; j < i + BLOCK && j < vocabulary && token < 0; j += LANES) {
          const F some = weights(j);
          for (int lane = 0; lane < LANES && token < 0; ++lane)
            if (some[lane] > 0) {
              last = j + lane;
              before += some[lane];
              if (before > aim) token = last;
            }
        }
      }
      if (token < 0) token = last;
    }
    tokens[row] = token;
    logprobs[row] = (x[token] - most) * inverse - (float)__builtin_log(total);
  }
}
