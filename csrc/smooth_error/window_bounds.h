// Where the positives, their edges and the ends of their windows are among the cells.
#pragma once

#include <cstdint>
#include <vector>

#include "smooth_error/cells.h"
#include "smooth_error/positives.h"

namespace corrdet {

struct WindowBounds {
  WindowBounds(const Positives& positives, const Cells& cells, double reach) {
    for (int64_t u = 0; u < positives.size(); ++u) {
      own.push_back(cells.locate(positives.scores[u]));
      edge_cells.push_back(cells.locate(positives.edges[u]).cell);
      ends.push_back(cells.cell_after(positives.scores[u] + reach));
      // The positives above an edge; those are not fewer that are above a lower one.
      int64_t v = u > 0 ? first_above.back() : 0;
      while (v < positives.size() && !(positives.scores[v] > positives.edges[u])) ++v;
      first_above.push_back(v);
    }
  }

  std::vector<Cells::Location> own;
  std::vector<int64_t> edge_cells, ends;  // ends: the first cells where the sigmoid is 1
  std::vector<int64_t> first_above;       // the first positive above the edge
};

}  // namespace corrdet
