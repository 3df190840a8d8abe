"""The policy of starting again, as plain arithmetic."""

from __future__ import annotations

from client.restart import EX_CONFIG, GiveUp, Restart, RestartPolicy, describe_exit

POLICY = RestartPolicy()


def test_a_first_death_is_answered_soon():
    assert POLICY.decide(1, [100.0]) == Restart(0.5)


def test_each_further_death_within_the_window_doubles_the_pause_up_to_a_limit():
    deaths = [100.0, 101.0, 102.0, 103.0, 104.0]
    pauses = [POLICY.decide(-9, deaths[:n]).after_s for n in range(1, 6)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert RestartPolicy(max_backoff_s=3).decide(1, deaths) == Restart(3)


def test_the_sixth_death_within_a_minute_is_for_good():
    verdict = POLICY.decide(1, [0.0, 10.0, 20.0, 30.0, 40.0, 60.0])
    assert verdict == GiveUp("it died 6 times within 60 s")


def test_deaths_of_more_than_a_minute_ago_are_forgiven():
    assert POLICY.decide(1, [0.0, 1.0, 2.0, 3.0, 4.0, 61.5, 63.0]) == Restart(4.0)


def test_a_part_that_cannot_work_as_configured_is_never_started_again():
    assert isinstance(POLICY.decide(EX_CONFIG, [100.0]), GiveUp)


def test_ending_without_being_asked_counts_as_a_death_even_with_code_0():
    assert POLICY.decide(0, [100.0]) == Restart(0.5)


def test_an_exit_is_told_in_words():
    assert describe_exit(-9) == "was killed by signal 9"
    assert describe_exit(78) == "ended with code 78"
