"""What readers see: results and claims on file, tables, plots and the HTML report.

Notebooks import from here: `from ilm_lib.report import show, plot_losses`.
"""

from ilm_lib.report.data_plots import (
    plot_item_map,
    plot_long_tail,
    plot_loss_gap,
    plot_losses,
    plot_query_similarity,
    plot_sequence_lengths,
)
from ilm_lib.report.result_plots import (
    plot_catalogue,
    plot_elm_tasks,
    plot_metric_by_method,
    plot_prompts_read,
    plot_query_tokens,
    plot_readings,
    plot_speed,
    plot_success,
)
from ilm_lib.report.results import write_claims, write_results
from ilm_lib.report.style import save_figure, use_style
from ilm_lib.report.tables import best_cells, claims_table, show, table_beside_paper

__all__ = [
    "best_cells", "claims_table", "plot_catalogue", "plot_elm_tasks", "plot_item_map", "plot_long_tail",
    "plot_loss_gap", "plot_losses", "plot_metric_by_method", "plot_prompts_read", "plot_query_similarity",
    "plot_query_tokens", "plot_readings", "plot_sequence_lengths", "plot_speed", "plot_success", "save_figure", "show",
    "table_beside_paper", "use_style", "write_claims", "write_results",
]  # fmt: skip
