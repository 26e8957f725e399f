#include "kernels/mamba/mamba.h"

namespace nibblet {

void mamba(const MambaArgs& args, int phase, int worker, int workers) {
  mamba_reference(args, phase, worker, workers);
}

}  // namespace nibblet
