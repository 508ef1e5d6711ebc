// What `binding.cpp` calls: one function an operation, defined beside its kernel.
#pragma once

#include "platform.h"
#include "tables.h"

namespace dfa {

// The tile that `project` uses for a product of `compute`; `large`: enough tiles fill the device.
Tile project_tile(Compute compute, bool large);
// Starts `table.tiles` programs on `stream`; every field of the table is set.
Error project(const ProjectTable& table, Compute compute, bool large, Stream stream);

// `fly`: δ is made in the kernel, from an error of at most kFlyError columns.
constexpr int kFlyError = 32;
Tile update_tile(Compute compute, bool large, bool fly);
Error update(const UpdateTable& table, Compute compute, bool large, bool fly, Stream stream);

}  // namespace dfa
