#include <string>
#include <utility>

#include "test/cuda/linear_call.h"

// The linears of nano-30b: a suite of each, so that a new row of kNanoLinears has one too.
namespace nibblet::test {
namespace {

constexpr bool is_head(const LinearShape& shape) { return shape.out > 100000; }

LinearCase case_of(const LinearShape& shape, int32_t tokens) {
  LinearCase c = {shape.format, shape.out, shape.in, tokens, tokens};
  c.norm = shape.norm;
  c.add = shape.add;
  c.x_type = shape.x_type;
  c.y_type = shape.y_type;
  c.selected = is_head(shape);
  return c;
}

void check_real(const LinearShape& shape, const std::vector<int32_t>& counts) {
  if (!only_on_gpu()) return;
  const DeviceLinearWeight weight(shape.format, shape.out, shape.in, 512);
  for (const int32_t tokens : counts) {
    DeviceLinear call(case_of(shape, tokens), weight);
    const Elements y = call.run();
    CHECK(call.run() == y);
    call.check(y, shape.out / 61);
  }
}

/// The name lives as long as the program, as the list of tests does.
void add(const std::string& name, void (*body)()) {
  std::string* kept = new std::string("cuda_linear_real_" + name);
  std::replace(kept->begin(), kept->end(), ' ', '_');
  add_test(kept->c_str(), body);
}

template <int32_t tokens, const LinearShape& shape>
void add_head() {
  add(shape.name + ("_of_" + std::to_string(tokens)), [] { check_real(shape, {tokens}); });
}

template <const LinearShape& shape>
void add_shape() {
  if constexpr (is_head(shape)) {
    // As much work as all others together.
    add_head<1, shape>(), add_head<8, shape>(), add_head<32, shape>(), add_head<64, shape>();
  } else {
    add(shape.name, [] { check_real(shape, {1, 8, 32, 64}); });
  }
}

template <size_t... i>
bool add_shapes(std::index_sequence<i...>) {
  return (add_shape<kNanoLinears[i]>(), ..., true);
}

const bool kAdded = add_shapes(std::make_index_sequence<std::size(kNanoLinears)>());

}  // namespace
}  // namespace nibblet::test
