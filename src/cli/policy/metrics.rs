//! `policy metrics`: calls by what they did and how they ended.

use comfy_table::Table;
use serde::Serialize;

use crate::{
    api::pb,
    cli::{
        failure::Failure,
        output::{Output, note, rows},
    },
    client::Client,
};

pub(super) async fn metrics(client: &Client, output: Output) -> Result<(), Failure> {
    let request = pb::GetInstanceMetricsRequest { parent: client.parent() };
    let pb::InstanceMetrics { rows } =
        client.policies().get_instance_metrics(request).await?.into_inner();
    let views: Vec<RowView> = rows.into_iter().map(RowView::from).collect();
    output.show(views.as_slice(), RowView::list)?;
    if views.is_empty() {
        note("nothing is counted: there were no calls, or the policy metrics is off");
    }
    Ok(())
}

/// Calls of one method that ended in one way, as they are shown.
#[derive(Debug, Serialize)]
struct RowView {
    action: String,
    /// Empty for success.
    reason: String,
    count: u64,
    total_micros: u64,
}

impl From<pb::instance_metrics::Row> for RowView {
    fn from(row: pb::instance_metrics::Row) -> Self {
        let pb::instance_metrics::Row { action, reason, count, total_micros } = row;
        Self { action, reason, count, total_micros }
    }
}

impl RowView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            let outcome = if view.reason.is_empty() { "success" } else { &view.reason };
            let mean = view.total_micros.checked_div(view.count).unwrap_or(0);
            vec![
                view.action.clone(),
                outcome.to_owned(),
                view.count.to_string(),
                format!("{mean} µs"),
            ]
        };
        rows(&["ACTION", "OUTCOME", "CALLS", "MEAN TIME"], views.iter().map(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_calls_ended_and_how_long_one_took() {
        let row = |reason: &str, count| {
            RowView::from(pb::instance_metrics::Row {
                action: "kms.secrets.unwrap".to_owned(),
                reason: reason.to_owned(),
                count,
                total_micros: 900,
            })
        };
        let table = RowView::list(&[row("", 3), row("KEY_SUSPENDED", 0)]).to_string();
        assert!(table.contains("success") && table.contains("300 µs"), "{table}");
        assert!(table.contains("KEY_SUSPENDED") && table.contains("0 µs"), "{table}");
    }
}
