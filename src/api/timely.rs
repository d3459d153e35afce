//! A request that has begun must come to its end in time: else who sends headers and no
//! message keeps a call's room for as long as the connection lasts.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

/// A request's body, which must have come before the call's deadline.
pub(super) struct Timely {
    body: Body,
    deadline: Instant,
    /// Made when it is first waited for, which is rare: a message mostly comes with its headers.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    pub(super) const fn new(body: Body, deadline: Instant) -> Self {
        Self { body, deadline, sleep: None }
    }
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let deadline = self.deadline.into();
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(Status::deadline_exceeded("the message did not come in time"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
