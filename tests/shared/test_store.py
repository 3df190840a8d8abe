"""Every transition of a job and every rule about it, on fakeredis and on a real Valkey."""

from __future__ import annotations

import pytest
import redis

from shared.errors import IdempotencyConflict, InvalidInput, JobNotFound, QueueFull
from shared.jobs import Job, JobFailure, JobStatus, Progress, new_job_id
from shared.store import Claim, JobStore, LeaseState
from tests.samples import Clock, a_request, a_worker, an_output

DAY_S = 86_400


def submit(store: JobStore, text: str = "Hello.", **fields: object) -> Job:
    return store.submit(a_request(text, **fields)).job


def claim(store: JobStore, worker: str = "w1", device: str = "cpu") -> Claim:
    claimed = store.claim(worker, device, "csm-tiny")
    assert claimed is not None
    return claimed


def crash(store: JobStore, clock: Clock, worker: str = "w1") -> Claim:
    """A worker takes the best job and falls silent."""
    lost = claim(store, worker)
    clock.advance(16)
    store.reap()
    return lost


def renew(store: JobStore, lease: Claim) -> LeaseState:
    return store.renew([(lease, Progress())])[0]


# Submitting


def test_a_submitted_job_is_queued_and_can_be_read_back(store: JobStore, clock: Clock) -> None:
    submission = store.submit(a_request("Grüße, 世界!", metadata={"chapter": "3"}))
    job = store.get(submission.job.id)
    assert job == submission.job
    assert not submission.replayed
    assert submission.doorbell == "echoforge.auto"
    assert (job.status, job.created_at, job.queue_position) == (JobStatus.QUEUED, clock.now, 1)
    assert job.request.text == "Grüße, 世界!"


def test_submitting_the_same_id_again_makes_no_second_job(store: JobStore) -> None:
    job_id = new_job_id()
    first = store.submit(a_request(), job_id=job_id, idempotency_key="k")
    second = store.submit(a_request(), job_id=job_id, idempotency_key="k")
    assert second.job == first.job
    assert not second.replayed
    assert len(store.list()[0]) == 1


def test_a_full_queue_refuses_and_says_when_to_come_back(store: JobStore) -> None:
    for _ in range(5):
        submit(store)
    with pytest.raises(QueueFull) as refused:
        submit(store)
    assert refused.value.retry_after_s == 5
    assert len(store.list()[0]) == 5


def test_a_replay_is_answered_even_when_the_queue_is_full(store: JobStore) -> None:
    first = store.submit(a_request(), idempotency_key="k")
    for _ in range(4):
        submit(store)
    assert store.submit(a_request(), idempotency_key="k").job.id == first.job.id


def test_one_idempotency_key_makes_one_job(store: JobStore) -> None:
    first = store.submit(a_request(), idempotency_key="k")
    second = store.submit(a_request(), idempotency_key="k")
    assert second.replayed
    assert second.job.id == first.job.id


def test_an_idempotency_key_with_another_body_is_refused(store: JobStore) -> None:
    store.submit(a_request("One."), idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        store.submit(a_request("Two."), idempotency_key="k")


def test_an_idempotency_key_is_forgotten_after_a_day(store: JobStore, clock: Clock) -> None:
    first = store.submit(a_request(), idempotency_key="k")
    clock.advance(DAY_S + 1)
    assert store.submit(a_request(), idempotency_key="k").job.id != first.job.id


def test_an_erased_job_frees_its_idempotency_key(store: JobStore) -> None:
    first = store.submit(a_request(), idempotency_key="k")
    store.erase(first.job.id)
    again = store.submit(a_request("Other."), idempotency_key="k")
    assert not again.replayed


# Order


def test_higher_priority_goes_first_and_equals_keep_their_order(store: JobStore) -> None:
    names = {}
    for priority in ("low", "normal", "high", "normal"):
        names[submit(store, priority=priority).id] = priority
    order = [claim(store, f"w{n}").job_id for n in range(4)]
    assert [names[id] for id in order] == ["high", "normal", "normal", "low"]
    assert order[1] < order[2]


def test_position_counts_the_jobs_ahead(store: JobStore) -> None:
    submit(store, priority="high")
    waiting = submit(store)
    submit(store, priority="low")
    assert store.get(waiting.id).queue_position == 2


def test_the_wait_is_estimated_from_recent_jobs_and_living_slots(
    store: JobStore, clock: Clock
) -> None:
    done = submit(store)
    assert store.get(done.id).estimated_start_s is None
    store.heartbeat(a_worker(slots=1))
    assert store.get(done.id).estimated_start_s == 0
    lease = claim(store)
    clock.advance(10)
    store.heartbeat(a_worker(slots=1))
    store.finish(lease, output=an_output(lease))
    submit(store)
    claim(store)
    assert store.get(submit(store).id).estimated_start_s == 10
    assert store.get(submit(store).id).estimated_start_s == 20


# Claiming


def test_nothing_waiting_means_no_claim(store: JobStore) -> None:
    assert store.claim("w1", "cpu", "csm-tiny") is None


def test_a_claim_starts_the_job(store: JobStore, clock: Clock) -> None:
    job = submit(store, timeout_s=100)
    clock.advance(7)
    lease = claim(store, device="cuda:0")
    assert (lease.job_id, lease.attempt, lease.alone) == (job.id, 1, False)
    assert lease.request == job.request
    assert lease.deadline_s == pytest.approx(93)
    running = store.get(job.id)
    assert running.status is JobStatus.IN_PROGRESS
    assert (running.started_at, running.device, running.model) == (clock.now, "cuda:0", "csm-tiny")
    assert running.queue_position is None


def test_two_claims_never_get_the_same_job(store: JobStore) -> None:
    submit(store)
    claim(store)
    assert store.claim("w2", "cpu", "csm-tiny") is None


def test_a_worker_takes_auto_jobs_and_those_for_its_device(store: JobStore) -> None:
    store.heartbeat(a_worker("w1", "cpu"))
    store.heartbeat(a_worker("w2", "cuda:0"))
    submit(store, device="cuda")
    for_cpu = submit(store, device="cpu")
    for_any = submit(store, device="auto")
    assert {claim(store).job_id, claim(store).job_id} == {for_cpu.id, for_any.id}
    assert store.claim("w1", "cpu", "csm-tiny") is None


def test_without_a_cuda_worker_the_cpu_speaks_and_the_job_says_so(
    store: JobStore, clock: Clock
) -> None:
    store.heartbeat(a_worker("w2", "cuda:0"))
    job = submit(store, device="cuda")
    assert store.claim("w1", "cpu", "csm-tiny") is None
    clock.advance(15)
    lease = claim(store)
    assert lease.device_fallback == "no cuda worker was alive; spoken on cpu"
    assert store.get(job.id).device_fallback == lease.device_fallback


def test_a_job_spoken_where_it_was_meant_names_no_fallback(store: JobStore) -> None:
    submit(store, device="cpu")
    assert claim(store).device_fallback is None


def test_a_worker_that_leaves_is_no_longer_alive(store: JobStore) -> None:
    store.heartbeat(a_worker("w2", "cuda:0"))
    assert [w.id for w in store.workers()] == ["w2"]
    store.leave("w2")
    assert store.workers() == []
    submit(store, device="cuda")
    assert claim(store).device_fallback


def test_a_silent_worker_is_no_longer_alive(store: JobStore, clock: Clock) -> None:
    store.heartbeat(a_worker("w1"))
    clock.advance(15)
    assert store.workers() == []


# Leases


def test_a_renewed_lease_is_not_reaped(store: JobStore, clock: Clock) -> None:
    submit(store)
    lease = claim(store)
    for _ in range(4):
        clock.advance(10)
        assert renew(store, lease) is LeaseState.HELD
        store.reap()
    assert store.get(lease.job_id).status is JobStatus.IN_PROGRESS


def test_renewing_tells_the_progress(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    store.renew([(lease, Progress(frames=5, audio_seconds=0.4, percent=20))])
    progress = store.get(lease.job_id).progress
    assert progress is not None
    assert progress.percent == 20


def test_a_batch_is_renewed_in_one_call_in_its_order(store: JobStore, clock: Clock) -> None:
    jobs = [submit(store) for _ in range(3)]
    leases = [claim(store) for _ in jobs]
    store.erase(jobs[0].id)
    store.cancel(jobs[2].id)
    states = store.renew([(lease, Progress()) for lease in leases])
    assert states == [LeaseState.LOST, LeaseState.HELD, LeaseState.CANCEL]
    assert store.renew([]) == []


def test_an_expired_lease_sends_the_job_to_its_old_place(store: JobStore, clock: Clock) -> None:
    first, second = submit(store), submit(store)
    crash(store, clock)
    job = store.get(first.id)
    assert (job.status, job.crashes, job.queue_position) == (JobStatus.QUEUED, 1, 1)
    assert job.started_at is None
    assert claim(store).job_id == first.id
    assert claim(store).job_id == second.id


def test_a_zombie_can_neither_renew_nor_finish_nor_release(store: JobStore, clock: Clock) -> None:
    submit(store)
    zombie = crash(store, clock)
    heir = claim(store, "w2")
    assert heir.job_id == zombie.job_id
    assert renew(store, zombie) is LeaseState.LOST
    assert not store.finish(zombie, output=an_output(zombie))
    assert not store.release(zombie)
    assert store.finish(heir, output=an_output(heir))
    assert not store.finish(zombie, output=an_output(zombie))
    output = store.get(heir.job_id).output
    assert output == an_output(heir)


def test_no_lease_is_reaped_for_one_lease_after_a_restart(
    client: redis.Redis, clock: Clock
) -> None:
    uptime = Clock(0.0)
    store = JobStore(client, clock=clock, uptime_s=uptime)
    submit(store)
    lease = crash(store, clock)
    assert store.get(lease.job_id).status is JobStatus.IN_PROGRESS
    uptime.advance(15)
    assert store.reap().requeued == 1


# Finishing


def test_a_finished_job_names_its_audio_and_its_end(store: JobStore, clock: Clock) -> None:
    submit(store, expires_in_s=60)
    lease = claim(store)
    clock.advance(3)
    assert store.finish(lease, output=an_output(lease), generate_s=2.5, ttfa_s=0.4)
    job = store.get(lease.job_id)
    assert job.status is JobStatus.COMPLETED
    assert (job.completed_at, job.expires_at) == (clock.now, clock.now + 60)
    assert (job.generate_s, job.ttfa_s, job.attempts) == (2.5, 0.4, 1)
    assert store.names_audio(an_output(lease).name)


def test_a_failure_is_told_as_it_was(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    failure = JobFailure(code="bad_text", message="No.", retryable=False)
    assert store.finish(lease, error=failure)
    job = store.get(lease.job_id)
    assert (job.status, job.error, job.output) == (JobStatus.FAILED, failure, None)


def test_finishing_again_with_the_same_end_is_no_error(store: JobStore, clock: Clock) -> None:
    submit(store)
    lease = claim(store)
    assert store.finish(lease, output=an_output(lease))
    ended = store.get(lease.job_id)
    clock.advance(5)
    assert store.finish(lease, output=an_output(lease))
    assert not store.finish(lease, cancelled=True)
    assert store.get(lease.job_id) == ended


def test_an_end_is_exactly_one_of_three(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    with pytest.raises(AssertionError):
        store.finish(lease)
    with pytest.raises(AssertionError):
        store.finish(lease, output=an_output(lease), cancelled=True)


# Giving back


def test_a_released_job_is_back_in_place_without_a_mark(store: JobStore) -> None:
    first = submit(store)
    submit(store)
    assert store.release(claim(store))
    job = store.get(first.id)
    assert (job.status, job.attempts, job.crashes) == (JobStatus.QUEUED, 0, 0)
    assert claim(store, "w2").job_id == first.id


def test_transient_errors_are_counted_and_fail_the_job_in_the_end(store: JobStore) -> None:
    job = submit(store)
    for _ in range(4):
        assert store.release(claim(store), transient=True)
        assert store.get(job.id).status is JobStatus.QUEUED
    assert store.release(claim(store), transient=True)
    failed = store.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("transient_errors", True)


def test_a_cancelled_job_is_not_given_back_but_ends(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    store.cancel(lease.job_id)
    assert store.release(lease)
    assert store.get(lease.job_id).status is JobStatus.CANCELLED


# Cancelling and erasing


def test_a_queued_job_is_cancelled_at_once(store: JobStore, clock: Clock) -> None:
    job = store.cancel(submit(store).id)
    assert job.status is JobStatus.CANCELLED
    assert job.cancel_requested_at == job.completed_at == clock.now
    assert store.claim("w1", "cpu", "csm-tiny") is None


def test_a_running_job_is_cancelled_by_its_worker(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    job = store.cancel(lease.job_id)
    assert job.status is JobStatus.IN_PROGRESS
    assert job.cancel_requested_at is not None
    assert renew(store, lease) is LeaseState.CANCEL
    assert store.finish(lease, cancelled=True)
    assert store.get(lease.job_id).status is JobStatus.CANCELLED


def test_a_cancelled_job_whose_worker_dies_is_cancelled(store: JobStore, clock: Clock) -> None:
    submit(store)
    lease = claim(store)
    store.cancel(lease.job_id)
    clock.advance(16)
    assert store.reap().cancelled == 1
    assert store.get(lease.job_id).status is JobStatus.CANCELLED


def test_cancelling_twice_keeps_the_first_time(store: JobStore, clock: Clock) -> None:
    submit(store)
    lease = claim(store)
    first = store.cancel(lease.job_id)
    clock.advance(1)
    assert store.cancel(lease.job_id).cancel_requested_at == first.cancel_requested_at


def test_cancelling_an_ended_job_changes_nothing(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    store.finish(lease, output=an_output(lease))
    ended = store.get(lease.job_id)
    assert store.cancel(lease.job_id) == ended
    assert ended.cancel_requested_at is None


def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for act in (store.get, store.cancel, store.erase):
        with pytest.raises(JobNotFound):
            act(new_job_id())


def test_erasing_leaves_nothing_behind(store: JobStore, client: redis.Redis) -> None:
    job = store.submit(a_request(), idempotency_key="k").job
    assert store.erase(job.id) is None
    assert sorted(client.keys("*")) == ["{echoforge}:seq"]


def test_erasing_an_ended_job_tells_the_audio_to_delete(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    store.finish(lease, output=an_output(lease))
    name = an_output(lease).name
    assert store.erase(lease.job_id) == name
    assert not store.names_audio(name)


def test_the_finish_of_an_erased_job_is_refused(store: JobStore) -> None:
    submit(store)
    lease = claim(store)
    store.erase(lease.job_id)
    assert renew(store, lease) is LeaseState.LOST
    assert not store.finish(lease, output=an_output(lease))
    with pytest.raises(JobNotFound):
        store.get(lease.job_id)


# Jobs that kill their workers


def test_a_job_that_crashed_twice_waits_for_a_worker_of_its_own(
    store: JobStore, clock: Clock
) -> None:
    suspect = submit(store)
    crash(store, clock)
    crash(store, clock)
    assert store.get(suspect.id).status is JobStatus.QUEUED
    submit(store)
    lease = claim(store)
    assert (lease.job_id, lease.alone) == (suspect.id, True)
    assert store.claim("w1", "cpu", "csm-tiny") is None  # it takes nothing beside it
    assert claim(store, "w2").job_id != suspect.id


def test_a_released_suspect_goes_back_to_quarantine(store: JobStore, clock: Clock) -> None:
    submit(store)
    crash(store, clock)
    crash(store, clock)
    store.release(claim(store))
    assert claim(store).alone


def test_three_crashes_alone_fail_the_job_for_good(store: JobStore, clock: Clock) -> None:
    job = submit(store)
    for _ in range(4):
        crash(store, clock)
        assert store.get(job.id).status is JobStatus.QUEUED
    crash(store, clock)
    failed = store.get(job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("crashed_worker", False)
    assert failed.crashes == 5


def test_one_busy_worker_drains_for_the_quarantine_and_the_others_go_on(
    store: JobStore, clock: Clock
) -> None:
    suspect = submit(store)
    crash(store, clock)
    claim(store)
    clock.advance(16)
    busy = [submit(store, priority="high") for _ in range(2)]
    assert {claim(store, "w2").job_id, claim(store, "w3").job_id} == {job.id for job in busy}
    store.reap()  # now the suspect is in quarantine, and both workers are busy
    innocent = submit(store)
    assert store.claim("w2", "cpu", "csm-tiny") is None
    assert claim(store, "w3").job_id == innocent.id
    submit(store)
    clock.advance(10)  # w2 did not come back in time: w3 may take over
    assert store.claim("w3", "cpu", "csm-tiny") is None
    assert claim(store, "w4").job_id == suspect.id  # whoever is idle need not wait


# Time


def test_a_job_that_waits_too_long_expires(store: JobStore, clock: Clock) -> None:
    job = submit(store, start_timeout_s=30)
    clock.advance(29)
    assert store.reap().expired == 0
    clock.advance(1)
    assert store.reap().expired == 1
    expired = store.get(job.id)
    assert (expired.status, expired.error) == (JobStatus.EXPIRED, None)


def test_a_job_that_waited_too_long_is_not_claimed(store: JobStore, clock: Clock) -> None:
    job = submit(store, start_timeout_s=30, priority="high")
    clock.advance(31)
    fresh = submit(store)
    assert claim(store).job_id == fresh.id
    assert store.get(job.id).status is JobStatus.EXPIRED


def test_a_job_once_begun_does_not_expire_but_fails_at_its_deadline(
    store: JobStore, clock: Clock
) -> None:
    job = submit(store, start_timeout_s=30, timeout_s=100)
    store.release(claim(store))
    clock.advance(60)
    assert store.reap().expired == 0
    clock.advance(40)
    assert store.reap().failed == 1
    failed = store.get(job.id)
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("deadline_exceeded", True)


def test_audio_goes_first_then_its_record(store: JobStore, clock: Clock) -> None:
    submit(store, expires_in_s=60)
    lease = claim(store)
    store.finish(lease, output=an_output(lease))
    assert store.expired_audio() == []
    clock.advance(60)
    assert store.expired_audio() == [(lease.job_id, an_output(lease).name)]
    clock.advance(10 * DAY_S)
    assert store.reap().removed == 0  # the file is still there
    store.forget_audio(lease.job_id)
    assert store.expired_audio() == []
    assert store.get(lease.job_id).audio_expired
    clock.advance(DAY_S)
    assert store.reap().removed == 1
    with pytest.raises(JobNotFound):
        store.get(lease.job_id)


def test_a_record_without_audio_is_removed_a_day_after_it_expires(
    store: JobStore, clock: Clock
) -> None:
    job = submit(store, expires_in_s=60)
    store.cancel(job.id)
    clock.advance(59 + DAY_S)
    assert store.reap().removed == 0
    clock.advance(1)
    assert store.reap().removed == 1


# Doorbells


def test_the_backlog_is_jobs_without_a_message(store: JobStore, client: redis.Redis) -> None:
    for _ in range(3):
        submit(store)
    client.rpush("echoforge:celery:echoforge.auto", "message")
    assert store.backlog() == {"echoforge.auto": 2, "echoforge.cuda": 0, "echoforge.cpu": 0}
    client.rpush("echoforge:celery:echoforge.auto", *("message" for _ in range(9)))
    assert store.backlog()["echoforge.auto"] == 0


def test_jobs_for_a_missing_device_ring_the_other(store: JobStore, clock: Clock) -> None:
    submit(store, device="cuda")
    assert store.backlog()["echoforge.cuda"] == 1  # nobody is alive: wait for its own
    store.heartbeat(a_worker("w1", "cpu"))
    assert store.backlog() == {"echoforge.auto": 0, "echoforge.cuda": 0, "echoforge.cpu": 1}
    assert store.submit(a_request(device="cuda")).doorbell == "echoforge.cpu"
    store.heartbeat(a_worker("w2", "cuda:0"))
    assert store.backlog()["echoforge.cuda"] == 2
    assert store.submit(a_request(device="cuda")).doorbell == "echoforge.cuda"


def test_a_job_in_quarantine_is_rung_for(store: JobStore, clock: Clock) -> None:
    submit(store)
    crash(store, clock)
    crash(store, clock)
    assert store.backlog()["echoforge.auto"] == 1


# Listing


def test_jobs_are_listed_newest_first_page_by_page(store: JobStore) -> None:
    ids = [submit(store).id for _ in range(5)]
    first, cursor = store.list(limit=2)
    assert [job.id for job in first] == ids[:-3:-1]
    store.erase(first[-1].id)  # a cursor does not need its job
    second, cursor = store.list(limit=2, after=cursor)
    assert [job.id for job in second] == [ids[2], ids[1]]
    last, end = store.list(limit=2, after=cursor)
    assert ([job.id for job in last], end) == ([ids[0]], None)


def test_jobs_are_listed_by_status(store: JobStore) -> None:
    for _ in range(3):
        submit(store)
    lease = claim(store)
    assert [job.id for job in store.list(status=JobStatus.IN_PROGRESS)[0]] == [lease.job_id]
    assert len(store.list(status=JobStatus.QUEUED)[0]) == 2
    counts = store.counts()
    assert (counts[JobStatus.QUEUED], counts[JobStatus.IN_PROGRESS]) == (2, 1)


def test_a_made_up_cursor_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidInput):
        store.list(after="-inf")
