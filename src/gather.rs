//! What tasks of one thread come with in the same turn of its runtime goes on together, so
//! that another thread is woken once for many. Nobody waits for company: a task yields once,
//! and so lets those go first that are ready to run.

use parking_lot::Mutex;
use thread_local::ThreadLocal;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What waits for the end of the turn, thread by thread, for an `R` each.
pub(crate) struct Gather<T: Send, R: Send>(ThreadLocal<Mutex<Turn<T, R>>>);

/// What came since something last went on.
struct Turn<T, R> {
    number: u64,
    parts: Vec<Part<T, R>>,
}

/// What one caller came with, and where its answer goes.
type Part<T, R> = (T, oneshot::Sender<R>);

impl<T: Send, R: Send + 'static> Gather<T, R> {
    /// Adds `item` and lets others come, at most `most` together; then calls `go` with all, in the
    /// order in which they came, unless another task has done that. `go` sends them on at once; its
    /// future has their answers, in that order. They are sent on even if this future is dropped.
    /// `None`, if there is no answer to `item`: the runtime ends.
    pub(crate) async fn join<F>(
        &self,
        item: T,
        most: usize,
        go: impl Fn(Vec<T>) -> F + Send,
    ) -> Option<R>
    where
        F: Future<Output = Vec<R>> + Send + 'static,
    {
        let here = self.0.get_or_default();
        let (reply, answer) = oneshot::channel();
        let (number, together) = {
            let mut turn = here.lock();
            turn.parts.push((item, reply));
            (turn.number, turn.parts.len())
        };
        let mut waiting = Waiting { here, number, go: Some(go) };
        if together < most {
            tokio::task::yield_now().await;
        }
        let go = waiting.go.take()?;
        let mut parts = here.lock().take(number);
        match parts.len() {
            // Another one took it along.
            0 => {}
            1 => {
                let (item, _reply) = parts.remove(0);
                return go(vec![item]).await.pop();
            }
            _ => send_on(parts, &go),
        }
        answer.await.ok()
    }
}

/// Gives each its answer by a task of this thread, which is woken once for all.
fn send_on<T, R: Send + 'static, F>(parts: Vec<Part<T, R>>, go: &impl Fn(Vec<T>) -> F)
where
    F: Future<Output = Vec<R>> + Send + 'static,
{
    let (items, replies): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let answers = go(items);
    // Err: the runtime ends, and with it who waits.
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn(async move {
        for (reply, answer) in replies.into_iter().zip(answers.await) {
            // Who does not wait any more does not need the answer.
            drop(reply.send(answer));
        }
    });
}

impl<T: Send, R: Send> Default for Gather<T, R> {
    fn default() -> Self {
        Self(ThreadLocal::new())
    }
}

impl<T, R> Default for Turn<T, R> {
    fn default() -> Self {
        Self { number: 0, parts: Vec::new() }
    }
}

impl<T, R> Turn<T, R> {
    /// What came in that turn, unless it is over.
    fn take(&mut self, number: u64) -> Vec<Part<T, R>> {
        if number != self.number {
            return Vec::new();
        }
        self.number += 1;
        std::mem::take(&mut self.parts)
    }
}

/// A task that may be dropped while it waits; what came in its turn goes on all the same.
struct Waiting<'a, T, R, F, G>
where
    R: Send + 'static,
    F: Future<Output = Vec<R>> + Send + 'static,
    G: Fn(Vec<T>) -> F,
{
    here: &'a Mutex<Turn<T, R>>,
    number: u64,
    go: Option<G>,
}

impl<T, R, F, G> Drop for Waiting<'_, T, R, F, G>
where
    R: Send + 'static,
    F: Future<Output = Vec<R>> + Send + 'static,
    G: Fn(Vec<T>) -> F,
{
    fn drop(&mut self) {
        let Some(go) = self.go.take() else { return };
        let parts = self.here.lock().take(self.number);
        if !parts.is_empty() {
            send_on(parts, &go);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    /// Answers each with all that went on with it; notes what goes on.
    async fn join(
        gather: &Gather<u8, Vec<u8>>,
        (item, most): (u8, usize),
        gone: &Mutex<Vec<Vec<u8>>>,
    ) -> Option<Vec<u8>> {
        let go = |items: Vec<u8>| {
            gone.lock().push(items.clone());
            ready(vec![items.clone(); items.len()])
        };
        gather.join(item, most, go).await
    }

    #[tokio::test]
    async fn what_comes_in_one_turn_goes_on_together_and_only_once() {
        let (gather, gone) = (Gather::default(), Mutex::default());
        assert_eq!(join(&gather, (1, 9), &gone).await, Some(vec![1]));
        let answers = join_all((1..=4).map(|item| join(&gather, (item, 9), &gone))).await;
        assert_eq!(answers, vec![Some(vec![1, 2, 3, 4]); 4]);
        assert_eq!(*gone.lock(), [vec![1], vec![1, 2, 3, 4]]);
    }

    #[tokio::test]
    async fn no_more_than_so_many_go_on_together() {
        let (gather, gone) = (Gather::default(), Mutex::default());
        join_all((1..=5).map(|item| join(&gather, (item, 2), &gone))).await;
        assert_eq!(*gone.lock(), [vec![1, 2], vec![3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn what_a_task_leaves_behind_goes_on_without_it() {
        let (gather, gone) = (Gather::default(), Mutex::default());
        let mut left = Box::pin(join(&gather, (1, 9), &gone));
        let mut other = Box::pin(join(&gather, (2, 9), &gone));
        assert!(left.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        drop(left);
        assert_eq!(*gone.lock(), [[1, 2]]);
        assert_eq!(other.await, Some(vec![1, 2]));
        assert_eq!(gone.lock().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn over_threads_each_has_its_own_answer() {
        let gather: Arc<Gather<u32, (u32, usize)>> = Arc::default();
        let tasks = (0..2_000_u32).map(|item| {
            let gather = Arc::clone(&gather);
            tokio::spawn(async move {
                let go = |items: Vec<u32>| {
                    let many = items.len();
                    ready(items.into_iter().map(|item| (2 * item, many)).collect::<Vec<_>>())
                };
                gather.join(item, 7, go).await
            })
        });
        for (item, task) in (0..).zip(tasks.collect::<Vec<_>>()) {
            let (answer, together) = task.await.unwrap().unwrap();
            assert!(answer == 2 * item && together <= 7, "{item} {answer} {together}");
        }
    }
}
