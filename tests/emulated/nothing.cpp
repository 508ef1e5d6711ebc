// Launchers that start nothing: what a launch costs up to here, and what the binding refuses before.
#include "launch.h"

namespace dfa {

Tile project_tile(Compute, bool large) { return {large ? 128 : 32, 128, 32, 256, 3, 0}; }
Error project(const ProjectTable&, Compute, bool, Stream) { return kSuccess; }

Tile update_tile(Compute, bool large, bool) { return {32, 128, large ? 128 : 64, 256, 3, 0}; }
Error update(const UpdateTable&, Compute, bool, bool, Stream) { return kSuccess; }

}  // namespace dfa
