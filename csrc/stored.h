// δ of a plain step, stored: what `project` makes for `update` to read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lists.h"
#include "plain.h"
#include "tables.h"
#include "tensors.h"

namespace dfa {

// Moves what a step's segments say of their δ into a table of `project`. δ of all of them lies in
// one scratch, whose address is added last: until then a pointer to δ holds its place in there.
class StoredDeltas {
   public:
    StoredDeltas(PlainStep& step, ProjectTable& projections)
        : step_(step), update_(step.table), project_(projections) {}

    // Whether the table holds them all. `matrix`: a user's B, or null.
    bool take(const Matrix* matrix) {
        project_.error = update_.error;
        project_.out = update_.x;
        if (matrix != nullptr &&
            (matrix->type != project_.error || matrix->stride != matrix->columns))
            return false;
        project_.matrix = matrix == nullptr ? nullptr : matrix->data;
        project_.matrix_columns = matrix == nullptr ? 0 : matrix->columns;
        project_.seed = update_.seed;
        project_.distribution = update_.distribution;
        project_.groups = 0;
        if (!group(matrix)) return false;
        int targets = 0;
        for (int g = 0; g < project_.groups; ++g) {
            project_.group[g].first_target = targets;
            targets += project_.group[g].targets;
            project_.group[g].targets = 0;  // as many as there are so far
        }
        for (int l = 0; l < update_.layers; ++l) {
            const UpdateLayer& layer = update_.layer[l];
            for (int i = 0; i < layer.segments; ++i) store(layer, layer.first_segment + i);
        }
        return true;
    }

    int64_t floats() const { return bytes_ / 4; }

    void place(float* scratch) {
        const int64_t address = reinterpret_cast<int64_t>(scratch);
        for (int i = 0; i < step_.segments(); ++i) {
            if (group_[i] == kItself) continue;
            Segment& s = update_.segment[i];
            ProjectTarget& t = project_.target[target_[i]];
            s.delta = t.out = reinterpret_cast<void*>(address + reinterpret_cast<int64_t>(t.out));
        }
    }

   private:
    static constexpr int kItself = -1;      // for a group: δ is the error, where that lies
    static constexpr int64_t kApart = 256;  // bytes that δ begins at multiples of

    // Which group makes each segment's δ.
    bool group(const Matrix* matrix) {
        int targets = 0;
        for (int l = 0; l < update_.layers; ++l) {
            const UpdateLayer& layer = update_.layer[l];
            for (int i = layer.first_segment; i < layer.first_segment + layer.segments; ++i) {
                const Segment& s = update_.segment[i];
                const bool head = s.stream == kHead;
                if (head && s.activation == Activation::identity && s.repeat == 1 &&
                    project_.error == update_.x &&
                    whole(s.error, s.error_stride, s.error_width, update_.x)) {
                    group_[i] = kItself;
                    continue;
                }
                if (!head && matrix != nullptr &&
                    (matrix->rows != s.error_width || matrix->columns < layer.d))
                    return false;
                int g = 0;
                while (g < project_.groups && !makes(g, s, step_.scale[i])) ++g;
                if (g == kProjectGroups || targets++ == kProjectTargets) return false;
                if (g == project_.groups) begin(s, step_.scale[i]);
                group_[i] = g;
                ++project_.group[g].targets;
            }
        }
        return true;
    }

    bool makes(int g, const Segment& s, double scale) const {
        const ProjectGroup& made = project_.group[g];
        return made.error == s.error && made.stream == s.stream && scale_[g] == scale &&
               made.rows == s.rows / s.repeat && made.error_width == s.error_width &&
               made.error_stride == s.error_stride;
    }

    void begin(const Segment& s, double scale) {
        scale_[project_.groups] = scale;
        ProjectGroup& g = project_.group[project_.groups++] = {};
        g.error = s.error;
        g.error_stride = s.error_stride;
        g.rows = s.rows / s.repeat;
        g.error_width = s.error_width;
        g.stream = s.stream;
        g.scale = s.stream == kHead ? 1.0f : static_cast<float>(scale);
        g.aligned = whole(s.error, s.error_stride, s.error_width, project_.error);
    }

    // Turns a segment into one that reads δ, and its group's next target into what makes it.
    void store(const UpdateLayer& layer, int i) {
        Segment& s = update_.segment[i];
        if (group_[i] == kItself) {
            s.delta = s.error;
            s.delta_stride = s.error_stride;
        } else {
            ProjectGroup& g = project_.group[group_[i]];
            target_[i] = g.first_target + g.targets++;
            ProjectTarget& t = project_.target[target_[i]] = {};
            const int64_t unit = kVector / bytes(update_.x);
            t.width = layer.d;
            t.padded = static_cast<int32_t>(ceil_div(layer.d, unit) * unit);
            t.out = reinterpret_cast<void*>(bytes_);
            t.out_stride = t.padded;
            t.saved = s.delta;
            t.saved_stride = s.delta_stride;
            t.activation = s.activation;
            t.repeat = s.repeat;
            t.aligned = s.activation == Activation::identity ||
                        whole(s.delta, s.delta_stride, layer.d, update_.x);
            g.columns = std::max(g.columns, t.padded);
            bytes_ += ceil_div(int64_t{s.rows} * t.padded * bytes(update_.x), kApart) * kApart;
            s.delta = nullptr;
            s.delta_stride = t.padded;
        }
        s.error = nullptr;
        s.error_stride = s.error_width = 0;
        s.stream = kHead;
        s.repeat = 1;
        s.activation = Activation::identity;
        s.aligned = whole(s.x, s.x_stride, layer.k, update_.x);
    }

    PlainStep& step_;
    UpdateTable& update_;
    ProjectTable& project_;
    double scale_[kProjectGroups];
    int group_[kUpdateSegments], target_[kUpdateSegments];
    int64_t bytes_ = 0;
};

}  // namespace dfa
