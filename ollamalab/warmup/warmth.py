"""What is known of one model on one upstream: loaded or not, until when, by whom it is used. Pure."""

from __future__ import annotations

import math
from contextlib import suppress
from enum import StrEnum

from ollamalab.errors import SettingsError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.durations import parse_keep_alive_s
from ollamalab.protocol.loaded import LoadedModel
from ollamalab.warmup.gaps import IdleGaps, Usage
from ollamalab.warmup.ledger import Account, Claim, Ending, Totals
from ollamalab.warmup.preload import Preload, preload_of

#: How long Ollama keeps a model that nobody says anything about.
OLLAMA_KEEP_S = 300.0

#: A request whose ``load_duration`` is longer has waited for a load: warm ones show 1 ms, loads 0.28 s
#: and more.
LOADED_ANEW_S = 0.1


class Step(StrEnum):
    """What may be done for a model."""

    LOAD = "load"
    RENEW = "renew"


class Warmth:
    """One model on one upstream; moments are on one monotonic clock and do not go back.

    Attributes:
        preload: How to load it as its traffic does.
        gaps: How long it is usually left alone.
        account: What keeping it has saved and cost.
        load_s: Seconds of its last load; None if none was seen.
        keep_s: How long its server keeps it after use.
        in_flight: Requests under way.
        idle_since_s: End of the last of them; None while there are some, and before the first.
        is_known: Whether it was ever in memory or failed to be loaded: a model that nobody has is not.
        is_resident: Whether it is in memory.
        expires_s: Until when; None if that is not known, or while it is used. May be infinite.
        doing: What we do for it now.
        load_begun_s: When the load that brought it, or brings it, began; None if that was not seen.
        may_load: Whether we may load it: once after each use, lest two models throw each other out again
            and again.
        is_due: Whether it is to be loaded in any case, because its server has just started.
    """

    def __init__(self, preload: Preload, *, gaps: Usage | None = None) -> None:
        self.preload = preload
        self.gaps = gaps or IdleGaps()
        self.account = Account()
        self.load_s: float | None = None
        self.keep_s = OLLAMA_KEEP_S
        self.in_flight = 0
        self.idle_since_s: float | None = None
        self.is_known = self.is_resident = False
        self.expires_s: float | None = None
        self.doing: Step | None = None
        self.load_begun_s: float | None = None
        self.may_load = self.is_due = False
        self._stamp: float | None = None  # ``expires_at`` as last shown; None = not since the timer started
        self._timer_s: float | None = None  # since when the server counts its keep-alive; None = not known
        self._was_listed = False  # whether its server has shown it since we last loaded it
        self._is_natural = True  # whether nothing of ours has prolonged its stay since its last use
        self._changed_s = -math.inf
        self._shown_s = -math.inf  # when its server last showed it

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing is known of it that would be missed."""
        return not (self.is_known or self.is_due or self.in_flight or self.doing)

    @property
    def is_loading(self) -> bool:
        """Whether its server is loading it now, for us or for a request."""
        return self.doing is Step.LOAD or (self.in_flight > 0 and not self.is_resident)

    def begun(self, now_s: float) -> Claim | None:
        """A request for it is sent; return what ``ended`` wants, None if others are under way."""
        self.in_flight += 1
        self._changed_s = now_s
        if self.in_flight > 1:
            return None
        if self.idle_since_s is not None:
            self.gaps.note(now_s - self.idle_since_s, now_s)
        self._lapse(now_s)
        is_warm = self.is_resident and self.doing is not Step.LOAD
        if not (is_warm or self.doing):
            self.load_begun_s = now_s
        self.is_resident = is_warm
        self.idle_since_s = self.expires_s = None
        self._is_natural = self.may_load = True
        self.is_due = False
        return self.account.used(now_s, is_warm=is_warm)

    def answering(self) -> None:
        """It has begun to answer, so it is loaded."""
        self.is_resident = True

    def ended(
        self, now_s: float, call: Call, claim: Claim | None, *, is_ok: bool, load_s: float | None
    ) -> None:
        """A request for it is over.

        Args:
            now_s: When.
            call: What it asked.
            claim: As ``begun`` gave it.
            is_ok: Whether the model began to answer it well.
            load_s: What the server says that it waited for the model; None if it does not say.
        """
        self.in_flight -= 1
        self._changed_s = now_s
        if is_ok:
            self._learn(call)
        if claim is not None:
            self._judge(claim, is_ok=is_ok, load_s=load_s)
        if self.in_flight:
            return
        self.idle_since_s = now_s
        if self.is_resident:
            self.account.natural(now_s + self.keep_s)
            self._rest(now_s)
        elif self.doing is Step.LOAD:
            self.account.natural(now_s)
        else:
            self.account.gone(now_s)
            self.load_begun_s = None

    def listed(
        self,
        asked_s: float,
        shown: LoadedModel | None,
        expires_s: float | None,
        *,
        load_begun_s: float | None = None,
    ) -> bool:
        """Its server says whether it is in memory; return whether it went before its time.

        Args:
            asked_s: When the server was asked.
            shown: What it says; None = it is not loaded.
            expires_s: ``shown.expires_unix_s`` on our clock; None if the server does not say.
            load_begun_s: When the last load of another model began there before that: since a server
                makes room before it loads, that is when this one went, if it was there until then.
        """
        if self._changed_s > asked_s or self.doing is not None:
            return False  # out of date before it is read
        if self.in_flight:
            if shown is None and self._was_listed:
                self.is_resident = False  # it had gone, unseen, and is loaded anew for them
            return False
        if shown is None:
            return self._vanish(asked_s, load_begun_s)
        known, self._stamp = self._stamp, shown.expires_unix_s
        stays_s = math.inf if expires_s is None else expires_s
        if not self.is_resident or (known is not None and known != shown.expires_unix_s):
            self.account.prolonged(asked_s, stays_s)  # somebody else's doing
            self._is_natural, self._timer_s = True, None
        elif self._is_natural:
            self.account.natural(stays_s)
        if self._timer_s is not None and asked_s < stays_s < math.inf:
            self.keep_s = stays_s - self._timer_s
        self.is_resident, self.expires_s, self._was_listed = True, stays_s, True
        self._shown_s = asked_s
        return False

    def step_begun(self, step: Step, now_s: float) -> None:
        """We begin to do something for it."""
        self.doing = step
        self._changed_s = now_s
        if step is Step.LOAD:
            self.load_begun_s = now_s
            self.may_load = self.is_due = self._was_listed = False
            self.account.loading(now_s)

    def step_ended(self, now_s: float, took_s: float | None) -> None:
        """What we did for it is over.

        Args:
            now_s: When.
            took_s: Seconds; None if it failed.
        """
        step, self.doing = self.doing, None
        self.is_known = True
        self._changed_s = now_s
        totals = self.account.totals
        if took_s is None:
            totals.failures += 1
            if step is Step.LOAD and not (self.in_flight or self.is_resident):
                self.account.gone(now_s, ending=Ending.UNDECIDED)
            return
        if step is Step.LOAD:
            totals.preloads += 1
        else:
            totals.renewals += 1
        if took_s >= LOADED_ANEW_S:
            self.load_s = took_s
        if not self.in_flight:
            self._is_natural = False
            self._rest(now_s)

    def totals(self, now_s: float) -> Totals:
        """Return what keeping it has saved and cost until now."""
        return self.account.totals_at(now_s if self.expires_s is None else min(now_s, self.expires_s))

    def _learn(self, call: Call) -> None:
        self.is_resident = self.is_known = True
        self.preload = preload_of(call)
        if self.preload.keep_alive is not None:
            with suppress(SettingsError):  # a form that its server took, and we do not know
                self.keep_s = parse_keep_alive_s(self.preload.keep_alive) or 0.0

    def _judge(self, claim: Claim, *, is_ok: bool, load_s: float | None) -> None:
        if not is_ok:
            self.account.judged(claim, is_cold=None, load_s=None)
        elif load_s is None:  # no figures, as under /v1: what was known before has to do
            is_cold = not claim.was_warm
            self.account.judged(claim, is_cold=is_cold, load_s=None if is_cold else self.load_s)
        elif load_s < LOADED_ANEW_S:
            self.account.judged(claim, is_cold=False, load_s=self.load_s)
        else:
            self.account.judged(claim, is_cold=True, load_s=load_s)
            if not claim.has_joined:  # else it waited for the rest of our load only
                self.load_s = load_s

    def _rest(self, now_s: float) -> None:
        """Its server counts its keep-alive from now on."""
        self._timer_s, self._stamp = now_s, None
        self.is_resident, self.expires_s = True, now_s + self.keep_s
        self._lapse(now_s)  # a keep-alive of 0 unloads at once

    def _lapse(self, now_s: float) -> None:
        """Take it for unloaded if its time is up."""
        if self.is_resident and self.expires_s is not None and now_s >= self.expires_s and self.doing is None:
            self.account.gone(self.expires_s)
            self.is_resident, self.expires_s = False, None

    def _vanish(self, now_s: float, load_begun_s: float | None) -> bool:
        """Take it for unloaded; return whether that came before its time.

        A server shows a model by one of its names only: one that was never shown has not gone.
        """
        self._lapse(now_s)
        if not self.is_resident:
            return False
        if load_begun_s is not None and load_begun_s > max(self._shown_s, self._changed_s):
            now_s = load_begun_s
        self.account.gone(now_s)
        self.is_resident, self.expires_s = False, None
        return self._was_listed
