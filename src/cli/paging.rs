//! Lists that come page by page: the first page, and a word if there are more;
//! or with `--all` every one.

use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, note},
};

/// How much of a list is wanted.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Paging {
    /// Every page, not only the first 200
    #[arg(long)]
    all: bool,
}

impl Paging {
    /// For lists that are never cut.
    pub(super) const ALL: Self = Self { all: true };

    /// Shows the items, which `page` fetches by page token along with the next one.
    pub(super) async fn show<T, V: From<T> + Serialize>(
        self,
        output: Output,
        what: &str,
        page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
        table: fn(&[V]) -> Table,
    ) -> Result<(), Failure> {
        let (items, more) = self.collect(page).await?;
        let views: Vec<V> = items.into_iter().map(V::from).collect();
        output.show(views.as_slice(), table)?;
        if more {
            note(&format!("there are more {what}: give --all"));
        }
        Ok(())
    }

    /// The items, and whether there are more.
    pub(super) async fn collect<T>(
        self,
        mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
    ) -> Result<(Vec<T>, bool), Failure> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let (more, next) = page(token).await?;
            items.extend(more);
            token = next;
            if token.is_empty() || !self.all {
                return Ok((items, !token.is_empty()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of three pages with one item each.
    async fn collected(paging: Paging) -> (Vec<usize>, bool) {
        let page = async |token: String| {
            let next = if token.len() == 2 { String::new() } else { format!("{token}x") };
            Ok((vec![token.len()], next))
        };
        paging.collect(page).await.unwrap()
    }

    #[tokio::test]
    async fn without_all_the_first_page_is_all_and_more_are_known() {
        assert_eq!(collected(Paging { all: false }).await, (vec![0], true));
    }

    #[tokio::test]
    async fn with_all_every_page_is_fetched_by_the_token_of_the_one_before() {
        assert_eq!(collected(Paging::ALL).await, (vec![0, 1, 2], false));
    }
}
