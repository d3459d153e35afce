//! What tasks of one thread come with in the same turn of its runtime goes on together, so
//! that another thread is woken once for many. Nobody waits for company: a task yields once,
//! and so lets those go first that are ready to run.

use parking_lot::Mutex;
use thread_local::ThreadLocal;

/// What waits for the end of the turn, thread by thread.
pub(crate) struct Gather<T: Send>(ThreadLocal<Mutex<Turn<T>>>);

/// What came since something last went on.
struct Turn<T> {
    number: u64,
    items: Vec<T>,
}

impl<T: Send> Gather<T> {
    /// Adds `item` and lets others come. Returns what has to go on now, in the order in which
    /// it came, with `item`; nothing, if another task has taken that along. Once there are `most` they
    /// go at once. If the future is dropped before that, `orphaned` gets them.
    pub(crate) async fn join(
        &self,
        item: T,
        most: usize,
        orphaned: impl FnOnce(Vec<T>) + Send,
    ) -> Vec<T> {
        let here = self.0.get_or_default();
        let (number, together) = {
            let mut turn = here.lock();
            turn.items.push(item);
            (turn.number, turn.items.len())
        };
        if together >= most {
            return here.lock().take(number);
        }
        let mut waiting = Waiting { here, number, orphaned: Some(orphaned) };
        tokio::task::yield_now().await;
        waiting.orphaned = None;
        here.lock().take(number)
    }
}

impl<T: Send> Default for Gather<T> {
    fn default() -> Self {
        Self(ThreadLocal::new())
    }
}

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self { number: 0, items: Vec::new() }
    }
}

impl<T> Turn<T> {
    /// What came in that turn, unless it is over.
    fn take(&mut self, number: u64) -> Vec<T> {
        if number != self.number {
            return Vec::new();
        }
        self.number += 1;
        std::mem::take(&mut self.items)
    }
}

/// A task that may be dropped while it waits.
struct Waiting<'a, T, F: FnOnce(Vec<T>)> {
    here: &'a Mutex<Turn<T>>,
    number: u64,
    orphaned: Option<F>,
}

impl<T, F: FnOnce(Vec<T>)> Drop for Waiting<'_, T, F> {
    fn drop(&mut self) {
        let Some(orphaned) = self.orphaned.take() else { return };
        let items = self.here.lock().take(self.number);
        if !items.is_empty() {
            orphaned(items);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    async fn join(gather: &Gather<u8>, item: u8, most: usize) -> Vec<u8> {
        gather.join(item, most, |items| panic!("{items:?} were orphaned")).await
    }

    #[tokio::test]
    async fn what_comes_in_one_turn_goes_on_together_and_only_once() {
        let gather = Gather::default();
        assert_eq!(join(&gather, 1, 9).await, [1]);
        let gone = join_all((1..=4).map(|item| join(&gather, item, 9))).await;
        assert_eq!(gone, [vec![1, 2, 3, 4], vec![], vec![], vec![]]);
    }

    #[tokio::test]
    async fn no_more_than_so_many_go_on_together() {
        let gather = Gather::default();
        let gone = join_all((1..=5).map(|item| join(&gather, item, 2))).await;
        assert_eq!(gone, [vec![], vec![1, 2], vec![], vec![3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn what_a_task_leaves_behind_goes_on_without_it() {
        let gather = Gather::default();
        let mut orphans = Vec::new();
        let left = gather.join(1, 9, |items| orphans = items);
        let mut other = Box::pin(join(&gather, 2, 9));
        {
            let mut left = Box::pin(left);
            assert!(left.as_mut().now_or_never().is_none());
            assert!(other.as_mut().now_or_never().is_none());
        }
        assert_eq!(orphans, [1, 2]);
        assert_eq!(other.await, [] as [u8; 0], "it is in the others' hands");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn over_threads_everything_goes_on_once() {
        let gather = Arc::new(Gather::default());
        let tasks = (0..2_000_u32).map(|item| {
            let gather = Arc::clone(&gather);
            tokio::spawn(async move { gather.join(item, 7, |_| panic!("none is dropped")).await })
        });
        let mut gone = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            let together = task.await.unwrap();
            assert!(together.len() <= 7);
            gone.extend(together);
        }
        gone.sort_unstable();
        assert_eq!(gone, (0..2_000).collect::<Vec<_>>());
    }
}
