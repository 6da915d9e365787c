//! A connection that is cut when its peer takes next to nothing for too long.
//!
//! hyper watches how long a request's head takes; this watches how long an answer waits to be taken.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A stream whose writes fail with `TimedOut` once they have waited for `limit` and `least_bytes` were not
/// taken meanwhile.
pub(crate) struct Stalled<S> {
    inner: S,
    limit: Duration,
    least_bytes: usize,
    /// Taken since a write first had to wait.
    taken_bytes: usize,
    /// Made at the first write that waits, armed while one waits.
    deadline: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> Stalled<S> {
    pub(crate) fn new(inner: S, limit: Duration, least_bytes: usize) -> Self {
        Self {
            inner,
            limit,
            least_bytes,
            taken_bytes: 0,
            deadline: None,
            waiting: false,
        }
    }

    /// A write: the wait is over once enough was taken.
    fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.taken_bytes = self.taken_bytes.saturating_add(bytes);
            self.waiting &= self.taken_bytes < self.least_bytes;
        }
        self.watch(cx, polled)
    }

    /// A flush or shutdown: with it all that was written is taken.
    fn watch_end(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        self.waiting &= polled.is_pending();
        self.watch(cx, polled)
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            self.taken_bytes = 0;
            deadline.as_mut().reset(Instant::now() + limit);
        }
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes next to nothing",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch_end(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch_end(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut_off_after_the_limit() {
        let (ours, _theirs) = duplex(16);
        let mut ours = Stalled::new(ours, LIMIT, 16);
        let begun = Instant::now();
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Stalled::new(ours, LIMIT, 16);
        let begun = Instant::now();
        let reader = tokio::spawn(async move {
            let mut taken = 0;
            let mut piece = [0; 16];
            while taken < 160 {
                sleep(LIMIT / 2).await;
                taken += theirs.read(&mut piece).await.unwrap();
            }
            taken
        });
        ours.write_all(&[0; 160]).await.unwrap();
        assert_eq!(reader.await.unwrap(), 160);
        assert!(begun.elapsed() > LIMIT * 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_byte_now_and_then_is() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Stalled::new(ours, LIMIT, 100);
        let begun = Instant::now();
        let reader = tokio::spawn(async move {
            let mut piece = [0; 1];
            while theirs.read(&mut piece).await.is_ok_and(|read| read > 0) {
                sleep(LIMIT / 20).await;
            }
        });
        let error = ours.write_all(&[0; 160]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() <= LIMIT + LIMIT / 10);
        drop(ours);
        reader.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_that_was_taken_leaves_nothing_behind_for_the_next() {
        let (ours, mut theirs) = duplex(16);
        let mut ours = Stalled::new(ours, LIMIT, 100);
        let reader = tokio::spawn(async move {
            let mut piece = [0; 16];
            for pause in [LIMIT / 2, LIMIT * 3, LIMIT / 2, LIMIT / 2] {
                sleep(pause).await;
                assert_eq!(theirs.read(&mut piece).await.unwrap(), 16);
            }
        });
        for _ in 0..2 {
            ours.write_all(&[0; 32]).await.unwrap();
            ours.flush().await.unwrap();
            sleep(LIMIT * 4).await;
        }
        reader.await.unwrap();
    }
}
