// Starting what a table says: how large its tiles are, and into how many parts a sum falls.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "lists.h"

namespace dfa {

inline void succeed(Error error) {
    if (error != kSuccess)
        throw std::runtime_error(std::string(error_name(error)) + ": " + error_text(error));
}

// Makes a device current, and whichever was so before afterwards.
class OnDevice {
   public:
    explicit OnDevice(int device) {
        succeed(current_device(&before_));
        changed_ = before_ != device;
        if (changed_) succeed(use_device(device));
    }
    ~OnDevice() {
        if (changed_) (void)use_device(before_);
    }
    OnDevice(const OnDevice&) = delete;

   private:
    int before_ = 0;
    bool changed_ = false;
};

struct Where {
    int device;
    Stream stream;
    int multiprocessors;

    explicit Where(Reader& from)
        : device(from.size("the device")),
          stream(reinterpret_cast<Stream>(from.integer())),
          multiprocessors(from.between("the multiprocessors", 1, 1 << 20)) {}
};

template <class Start>
void launch_on(const Where& where, Start start) {
    Error error;
    OnDevice current(where.device);
    {
        py::gil_scoped_release released;
        error = start();
    }
    succeed(error);
}

// Memory of a launch: floats, and counters that are 0 before and after; held as long as this lives.
struct Scratch {
    float* floats = nullptr;
    int32_t* counters = nullptr;
    py::object held = py::none();

    // What Python gives, if anything is wanted.
    static Scratch take(const py::object& give, int64_t floats, int32_t counters) {
        if (floats == 0) return {};
        const py::tuple given = give(floats, counters);
        const int64_t first = given[0].cast<int64_t>(), second = given[1].cast<int64_t>();
        if (first % kVector != 0 || first == 0 || second % 4 != 0 || (second == 0 && counters > 0))
            refuse("the scratch of a launch is null or misaligned");
        return {reinterpret_cast<float*>(first), reinterpret_cast<int32_t*>(second), given};
    }
};

inline int32_t as_tiles(int64_t tiles) {
    if (tiles > std::numeric_limits<int32_t>::max())
        refuse("one launch takes fewer than 2,147,483,648 tiles, not " + std::to_string(tiles));
    return static_cast<int32_t>(tiles);
}

// project --------------------------------------------------------------------------------------

inline int64_t count_tiles(ProjectTable& table, const Tile& tile) {
    int64_t tiles = 0;
    for (int i = 0; i < table.groups; ++i) {
        ProjectGroup& g = table.group[i];
        g.first_tile = as_tiles(tiles);
        g.tiles_n = static_cast<int32_t>(ceil_div(g.rows, tile.n));
        tiles += g.tiles_n * ceil_div(g.columns, tile.d);
    }
    table.tiles = as_tiles(tiles);
    return tiles;
}

// Whether the tiles are large: enough of those to fill the device.
inline bool size_tiles(ProjectTable& table, const Where& where, Compute compute) {
    if (count_tiles(table, project_tile(compute, true)) >= where.multiprocessors) return true;
    count_tiles(table, project_tile(compute, false));
    return false;
}

// update ---------------------------------------------------------------------------------------

inline int64_t count_tiles(UpdateTable& table, const Tile& tile) {
    int64_t tiles = 0;
    for (int i = 0; i < table.layers; ++i) {
        UpdateLayer& layer = table.layer[i];
        layer.first_tile = as_tiles(tiles);
        layer.tiles_d = static_cast<int32_t>(ceil_div(layer.d, tile.d));
        tiles += layer.tiles_d * ceil_div(layer.k, tile.k);
        int64_t blocks = 0;
        for (int s = 0; s < layer.segments; ++s)
            blocks += ceil_div(table.segment[layer.first_segment + s].rows, tile.n);
        layer.blocks = as_tiles(blocks);
    }
    table.tiles = as_tiles(tiles);
    return tiles;
}

// Into how many parts the sums over N fall: as many as fill the device, of at least 4 blocks each.
inline int32_t count_splits(const UpdateTable& table, int multiprocessors) {
    int32_t blocks = 0;
    for (int i = 0; i < table.layers; ++i) blocks = std::max(blocks, table.layer[i].blocks);
    if (table.tiles == 0 || table.tiles >= multiprocessors || blocks < 8) return 1;
    return std::max(1, std::min({multiprocessors / table.tiles, blocks / 4, 64}));
}

// How `update` divides a table's work, and the memory that a split sum takes.
struct Division {
    Tile tile;
    bool large;
    int64_t floats = 0;
    int32_t counters = 0;

    Division(UpdateTable& table, const Where& where, Compute compute, bool fly)
        : tile(update_tile(compute, true, fly)) {
        large = count_tiles(table, tile) >= where.multiprocessors;
        if (!large) count_tiles(table, tile = update_tile(compute, false, fly));
        table.splits = count_splits(table, where.multiprocessors);
        const int64_t slots = as_tiles(int64_t{table.tiles} * table.splits);
        table.partial = table.partial_bias = nullptr;
        table.arrived = nullptr;
        if (table.splits == 1) return;
        floats = slots * (int64_t{tile.d} * tile.k + tile.d);
        counters = table.tiles;
    }

    void place(UpdateTable& table, float* partial, int32_t* arrived) const {
        if (table.splits == 1) return;
        table.partial = partial;
        table.partial_bias = partial + floats - int64_t{counters} * table.splits * tile.d;
        table.arrived = arrived;
    }
};

}  // namespace dfa
