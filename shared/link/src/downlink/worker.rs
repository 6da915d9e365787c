//! Who does the disk's work of which session: a queue for each session, and threads that are there while there
//! is something to do. The loop never waits for them; a slow disk shows as credit that is not given back.
//!
//! A session's work is done in its order, by one thread at a time; an idle device has none. A disk operation
//! that hangs holds its own session, and one of many threads.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use link_proto::{
    Channel, SessionId,
    messages::{ProtocolError, ToEdge},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::task::TaskTracker;

/// Threads for the disk's work of all sessions together. One is made where all others are at work, and ends
/// after ten seconds without any: with a healthy disk there are a few. When so many hang, the others wait.
pub(super) const MAX_THREADS: usize = 512;

/// What waits of a session at most, in messages and other work. The session's receive windows bound messages
/// long before, since one is charged for until it has been dealt with; renewed channels begin with new windows,
/// and so must not be renewed for ever while the disk hangs.
const MAX_WAITING: usize = 65_536;
/// The same in bytes of messages.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What there is to do for a session.
#[derive(Debug)]
pub(super) enum Work {
    Message {
        generation: u64,
        channel: Channel,
        message: Bytes,
    },
    /// The channels were renewed: the edge begins anew.
    Reset,
    /// See whether the streams are still this device's, and what it shipped still whole.
    CheckOwner,
    /// Count what is missing of the streams, for whoever watches.
    Count,
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { message, .. } => message.len(),
            Self::Reset | Self::CheckOwner | Self::Count => 0,
        }
    }
}

/// What was done for a session.
#[derive(Debug)]
pub(super) enum Done {
    /// A message was dealt with.
    Taken {
        session: SessionId,
        generation: u64,
        channel: Channel,
        bytes: usize,
        answers: Vec<ToEdge>,
    },
    /// Streams were taken from the device.
    Refused {
        session: SessionId,
        answers: Vec<ToEdge>,
    },
    /// The edge is at fault.
    Violation {
        session: SessionId,
        error: ProtocolError,
    },
    /// The hub's disk or catalog is at fault, or has lost something; the edge may come back and try again.
    Failed { session: SessionId },
}

/// Does a session's work.
pub(super) trait Clerk: Send {
    /// What to say of it, and whether to go on.
    fn take(&mut self, work: Work) -> (Option<Done>, bool);
}

/// The threads.
#[derive(Clone)]
pub(super) struct Pool {
    runtime: Handle,
    jobs: TaskTracker,
}

impl Pool {
    /// Threads of this runtime, which has [`MAX_THREADS`] of them.
    pub(super) fn of(runtime: Handle) -> Self {
        Self {
            runtime,
            jobs: TaskTracker::new(),
        }
    }

    /// Waits until all that was begun has ended.
    pub(super) async fn end(self) {
        self.jobs.close();
        self.jobs.wait().await;
    }
}

/// A session's queue, as the loop holds it.
pub(super) struct Worker<T>(Arc<Queue<T>>);

impl<T> Clone for Worker<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Queue<T> {
    pool: Pool,
    done: mpsc::Sender<T>,
    session: SessionId,
    state: Mutex<State<T>>,
}

struct State<T> {
    stage: Stage,
    work: VecDeque<Work>,
    bytes: usize,
    /// One look at whose the streams are says as much as many.
    check_waits: bool,
    clerk: Option<Box<dyn Clerk>>,
    /// Nothing more is to be done.
    stopped: bool,
    /// The device's next session, which waits for the end of this one.
    next: Option<Arc<Queue<T>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The device's last session has not let go of its partials.
    Held,
    Idle,
    Working,
    /// The clerk is gone, and with it every file that it had open.
    Ended,
}

/// More waits for a session's clerk than may: its disk hangs, and the session must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

impl<T: From<Done> + Send + 'static> Worker<T> {
    /// `before`: the device's last session, which must have let go of its partials first.
    pub(super) fn start(
        pool: &Pool,
        session: SessionId,
        clerk: Box<dyn Clerk>,
        before: Option<&Self>,
        done: mpsc::Sender<T>,
    ) -> Self {
        let queue = Arc::new(Queue {
            pool: pool.clone(),
            done,
            session,
            state: Mutex::new(State {
                stage: Stage::Idle,
                work: VecDeque::new(),
                bytes: 0,
                check_waits: false,
                clerk: Some(clerk),
                stopped: false,
                next: None,
            }),
        });
        if let Some(before) = before {
            let mut before = before.0.lock();
            if before.stage != Stage::Ended {
                queue.lock().stage = Stage::Held;
                before.next = Some(Arc::clone(&queue));
            }
        }
        Self(queue)
    }

    /// One more thing to do. After a failure nothing is done any more.
    pub(super) fn give(&self, work: Work) -> Result<(), Overrun> {
        let mut state = self.0.lock();
        if state.stopped || state.stage == Stage::Ended {
            return Ok(());
        }
        if matches!(work, Work::CheckOwner) && std::mem::replace(&mut state.check_waits, true) {
            return Ok(());
        }
        state.bytes += work.bytes();
        state.work.push_back(work);
        if state.work.len() > MAX_WAITING || state.bytes > MAX_WAITING_BYTES {
            return Err(Overrun);
        }
        self.0.work_on(&mut state);
        Ok(())
    }

    /// It does not wait for the session before it any more.
    pub(super) fn has_begun(&self) -> bool {
        self.0.lock().stage != Stage::Held
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.lock().stage == Stage::Ended
    }

    /// It ends after what it does just now; what waits is dropped, for the edge to ship again.
    pub(super) fn stop(&self) {
        let mut state = self.0.lock();
        state.stopped = true;
        state.work.clear();
        // Open files are closed by a thread, too.
        self.0.work_on(&mut state);
    }
}

impl<T: From<Done> + Send + 'static> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread look at the queue, if none does and there is a reason.
    fn work_on(self: &Arc<Self>, state: &mut State<T>) {
        if state.stage == Stage::Idle && (state.stopped || !state.work.is_empty()) {
            state.stage = Stage::Working;
            let queue = Arc::clone(self);
            let job = move || queue.run();
            self.pool.jobs.spawn_blocking_on(job, &self.pool.runtime);
        }
    }

    fn run(self: Arc<Self>) {
        let clerk = self.lock().clerk.take();
        let mut at_work = AtWork {
            queue: &self,
            clerk,
        };
        while let Some(work) = at_work.next() {
            let Some(clerk) = &mut at_work.clerk else {
                return;
            };
            let (said, goes_on) = clerk.take(work);
            let heard = said.is_none_or(|said| self.done.blocking_send(said.into()).is_ok());
            if !goes_on || !heard {
                return;
            }
        }
    }
}

/// A clerk that has a thread. Dropped with its clerk, the session's work has ended: stopped, failed, panicked.
struct AtWork<'a, T: From<Done> + Send + 'static> {
    queue: &'a Arc<Queue<T>>,
    clerk: Option<Box<dyn Clerk>>,
}

impl<T: From<Done> + Send + 'static> AtWork<'_, T> {
    /// The next thing to do; none: the clerk goes to rest, or ends.
    fn next(&mut self) -> Option<Work> {
        let mut state = self.queue.lock();
        if state.stopped {
            return None;
        }
        let Some(work) = state.work.pop_front() else {
            state.clerk = self.clerk.take();
            state.stage = Stage::Idle;
            return None;
        };
        state.bytes -= work.bytes();
        if matches!(work, Work::CheckOwner) {
            state.check_waits = false;
        }
        Some(work)
    }
}

impl<T: From<Done> + Send + 'static> Drop for AtWork<'_, T> {
    fn drop(&mut self) {
        let Some(clerk) = self.clerk.take() else {
            return;
        };
        if std::thread::panicking() {
            tracing::error!(session = %self.queue.session, "the work of a session had panicked");
            let failed = Done::Failed {
                session: self.queue.session,
            };
            // Where there is no room, the session stands still until its edge gives it up.
            let _ = self.queue.done.try_send(failed.into());
        }
        drop(clerk);
        let next = {
            let mut state = self.queue.lock();
            state.stage = Stage::Ended;
            state.work = VecDeque::new();
            state.next.take()
        };
        if let Some(next) = next {
            let mut state = next.lock();
            state.stage = Stage::Idle;
            next.work_on(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as channel;

    use super::*;

    /// Says that it has begun, then waits for leave.
    struct Slow {
        name: &'static str,
        began: channel::Sender<&'static str>,
        leave: channel::Receiver<()>,
        dropped: channel::Sender<&'static str>,
    }

    impl Clerk for Slow {
        fn take(&mut self, _: Work) -> (Option<Done>, bool) {
            self.began.send(self.name).unwrap();
            self.leave.recv().unwrap();
            (None, true)
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.dropped.send(self.name);
        }
    }

    struct Bench {
        runtime: tokio::runtime::Runtime,
        pool: Pool,
        done: mpsc::Sender<Done>,
        said: mpsc::Receiver<Done>,
        began: (
            channel::Sender<&'static str>,
            channel::Receiver<&'static str>,
        ),
        dropped: (
            channel::Sender<&'static str>,
            channel::Receiver<&'static str>,
        ),
    }

    impl Bench {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .max_blocking_threads(4)
                .build()
                .unwrap();
            let pool = Pool::of(runtime.handle().clone());
            let (done, said) = mpsc::channel(16);
            Self {
                runtime,
                pool,
                done,
                said,
                began: channel::channel(),
                dropped: channel::channel(),
            }
        }

        fn worker(
            &self,
            name: &'static str,
            before: Option<&Worker<Done>>,
        ) -> (Worker<Done>, channel::Sender<()>) {
            let (leave, leaves) = channel::channel();
            let clerk = Slow {
                name,
                began: self.began.0.clone(),
                leave: leaves,
                dropped: self.dropped.0.clone(),
            };
            let done = self.done.clone();
            let worker = Worker::start(
                &self.pool,
                link_proto::sim::session_id(1),
                Box::new(clerk),
                before,
                done,
            );
            (worker, leave)
        }
    }

    #[test]
    fn a_disk_that_hangs_for_one_holds_no_other_and_an_idle_one_has_no_thread() {
        let bench = Bench::new();
        let (hangs, leave) = bench.worker("hangs", None);
        let (other, leave_other) = bench.worker("other", None);
        assert!(bench.pool.jobs.is_empty(), "nothing to do yet");
        hangs.give(Work::Reset).unwrap();
        hangs.give(Work::Reset).unwrap();
        assert_eq!(bench.began.1.recv(), Ok("hangs"));
        other.give(Work::Reset).unwrap();
        assert_eq!(bench.began.1.recv(), Ok("other"));
        assert_eq!(bench.pool.jobs.len(), 2);
        leave_other.send(()).unwrap();
        leave.send(()).unwrap();
        assert_eq!(bench.began.1.recv(), Ok("hangs"), "in its order");
        leave.send(()).unwrap();
        bench.pool.jobs.close();
        bench.runtime.block_on(bench.pool.jobs.wait());
        assert!(!hangs.has_ended() && !other.has_ended(), "both are at rest");
    }

    #[test]
    fn a_devices_next_session_waits_until_the_last_has_let_go() {
        let bench = Bench::new();
        let (last, leave) = bench.worker("last", None);
        last.give(Work::Reset).unwrap();
        assert_eq!(bench.began.1.recv(), Ok("last"));
        last.give(Work::Reset).unwrap();
        last.stop();
        let (next, leave_next) = bench.worker("next", Some(&last));
        next.give(Work::Reset).unwrap();
        assert!(!next.has_begun() && !last.has_ended());
        leave.send(()).unwrap();
        assert_eq!(bench.dropped.1.recv(), Ok("last"), "what waited is dropped");
        assert_eq!(bench.began.1.recv(), Ok("next"));
        assert!(last.has_ended() && next.has_begun());
        leave_next.send(()).unwrap();
        next.stop();
        assert_eq!(bench.dropped.1.recv(), Ok("next"));
        let (third, _leave) = bench.worker("third", Some(&last));
        assert!(third.has_begun(), "nothing to wait for");
    }

    #[test]
    fn a_panic_ends_its_own_session() {
        let mut bench = Bench::new();
        let (worker, leave) = bench.worker("panics", None);
        drop(leave);
        worker.give(Work::Reset).unwrap();
        assert!(matches!(
            bench.said.blocking_recv(),
            Some(Done::Failed { .. })
        ));
        assert_eq!(bench.dropped.1.recv(), Ok("panics"));
        assert_eq!(worker.give(Work::Reset), Ok(()));
    }

    #[test]
    fn what_waits_for_a_hung_disk_has_an_end() {
        let bench = Bench::new();
        let (hangs, leave) = bench.worker("hangs", None);
        hangs.give(Work::Reset).unwrap();
        assert_eq!(bench.began.1.recv(), Ok("hangs"));
        hangs.give(Work::CheckOwner).unwrap();
        hangs.give(Work::CheckOwner).unwrap();
        assert_eq!(hangs.0.lock().work.len(), 1, "one look is enough");
        for _ in 1..MAX_WAITING {
            hangs.give(Work::Reset).unwrap();
        }
        assert_eq!(hangs.give(Work::Reset), Err(Overrun));
        hangs.stop();
        leave.send(()).unwrap();

        let (hangs, leave) = bench.worker("hangs", None);
        hangs.give(Work::Reset).unwrap();
        let message = || Work::Message {
            generation: 0,
            channel: Channel::Bulk,
            message: Bytes::from(vec![0; MAX_WAITING_BYTES / 4]),
        };
        for _ in 0..4 {
            hangs.give(message()).unwrap();
        }
        assert_eq!(hangs.give(message()), Err(Overrun));
        hangs.stop();
        leave.send(()).unwrap();
    }
}
