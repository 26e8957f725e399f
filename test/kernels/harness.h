#pragma once

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

/// A test program in a page: TEST(name) { ... } registers a test, CHECK macros record failures and go on,
/// `nibblet-test [--list] [filter...]` runs the tests whose name contains one of the filters.
namespace nibblet::test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

/// Failures of the running test; the first few are printed.
inline int& failures() {
  static int count = 0;
  return count;
}

inline bool add_test(const char* name, void (*body)()) { return tests().push_back({name, body}), true; }

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(9);
  if constexpr (sizeof(T) == 1) {
    out << int(value);
  } else {
    out << value;
  }
  return out.str();
}

inline void fail(const char* file, int line, const std::string& message) {
  if (++failures() <= 10) std::printf("    %s:%d: %s\n", file, line, message.c_str());
}

template <typename A, typename B>
void check_equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (!(a == b)) fail(file, line, std::string(text) + ": " + show(a) + " != " + show(b));
}

/// |a - b| <= bound, and neither is NaN.
inline void check_near(const char* file, int line, const char* text, double a, double b, double bound) {
  double difference = a > b ? a - b : b - a;
  if (a == b || difference <= bound) return;
  fail(file, line, std::string(text) + ": " + show(a) + " is not within " + show(bound) + " of " + show(b));
}

}  // namespace nibblet::test

#define TEST(name)                                                                \
  static void test_##name();                                                      \
  static const bool added_##name = ::nibblet::test::add_test(#name, test_##name); \
  static void test_##name()

/// Each of these may be followed by more checks: a failure is recorded, the test goes on.
#define CHECK(condition) \
  ((condition) ? void() : ::nibblet::test::fail(__FILE__, __LINE__, "not true: " #condition))
#define CHECK_EQ(a, b) ::nibblet::test::check_equal(__FILE__, __LINE__, #a " == " #b, a, b)
#define CHECK_NEAR(a, b, bound) ::nibblet::test::check_near(__FILE__, __LINE__, #a " ~ " #b, a, b, bound)
