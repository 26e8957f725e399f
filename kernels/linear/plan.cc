#include "kernels/linear/matmul.h"

namespace nibblet {

Matmul plan_matmul(const WeightView& weight) {
  return weight.layout == Layout::panels ? matmul_panels : matmul_reference;
}

}  // namespace nibblet
