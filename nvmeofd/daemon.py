"""The daemon: wiring, start, reload, watchdog, stop."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from logging import INFO
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from nvmeofd import __version__
from nvmeofd import log as logging
from nvmeofd.bus.messages import BusLost
from nvmeofd.bus.service import BusService, NameTaken
from nvmeofd.config import Config, effective
from nvmeofd.configfile import ConfigError
from nvmeofd.exporter import EngineSource, Exporter
from nvmeofd.journal import DirectoryStore, Journal
from nvmeofd.kernel.commands import StandIn
from nvmeofd.kernel.interface import CommandError
from nvmeofd.kernel.linux import LinuxKernel
from nvmeofd.log import log
from nvmeofd.metrics import Operations
from nvmeofd.notify import ServiceManager
from nvmeofd.operations.engine import Engine

if TYPE_CHECKING:
    from nvmeofd.errors import NvmeofdError
    from nvmeofd.jobs import Job
    from nvmeofd.model import OperationKind
    from nvmeofd.operations.volumes import Volume

JOURNAL_DIRECTORY = Path("/run/nvmeofd")
STATUS_DELAY = 0.2  # seconds
TICK = 15.0  # seconds; where there is a watchdog, as often as that wants to be told
REMOVE_SECONDS = 2.0  # that a stop waits for the file of metrics to be removed
# How long a stop waits for running jobs: less than TimeoutStopSec= of the unit, which ends in SIGKILL.
STOP_SECONDS = 75.0
# sysexits.h; the unit does not start again after it, as nothing would be different.
EX_CONFIG = 78
# At shutdown the kernel gives a lost controller up at the first attempt to reconnect it after this many seconds.
SHUTDOWN_LOSS_SECONDS = 5


class DaemonObserver:
    """Passes news on to the bus, counts them, and has status line and metrics brought up to date."""

    def __init__(self, bus: BusService, operations: Operations, update: Callable[[], None]) -> None:
        self._bus = bus
        self._operations = operations
        self._update = update

    def volume_added(self, volume: Volume) -> None:
        self._bus.volume_added(volume)
        self._update()

    def volume_changed(self, volume: Volume) -> None:
        self._bus.volume_changed(volume)
        self._update()

    def volume_removed(self, staging_path: str) -> None:
        self._bus.volume_removed(staging_path)
        self._update()

    def subsystems_changed(self) -> None:
        self._bus.subsystems_changed()
        self._update()

    def job_added(self, job: Job) -> None:
        self._bus.job_added(job)
        self._update()

    def job_changed(self, job: Job) -> None:
        self._bus.job_changed(job)

    def job_finished(self, job: Job, error: NvmeofdError | None) -> None:
        self._bus.job_finished(job, error)
        self._operations.finished(job.operation, error, asyncio.get_running_loop().time() - job.accepted)
        self._update()

    def refused(self, operation: OperationKind, error: NvmeofdError) -> None:
        self._operations.refused(operation, error)
        self._update()


class Daemon:
    """One run of the daemon, from a loaded configuration to the exit status."""

    def __init__(self, config: Config, load: Callable[[], Config], manager: ServiceManager) -> None:
        self._config = config
        self._load = load
        self._manager = manager
        self._engine: Engine | None = None
        self._stop = asyncio.Event()
        self._status_timer: asyncio.TimerHandle | None = None
        self._operations = Operations()
        self._exporter: Exporter | None = None
        self._kernel: LinuxKernel | None = None
        self._giving_up: asyncio.Future[None] | None = None
        self._complaint = ""  # why the files are not what is in force, for the status line

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status.

        Raises:
            OSError: the first scan failed, or the journal cannot be used.
            BusLost, NameTaken: there is no bus, or it does not give the name.
        """
        loop = asyncio.get_running_loop()
        reload_wanted = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._host_stops)
        # until it is ready, a wish to reload is kept
        loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
        bus = await BusService.connect()
        bus.on_count = partial(self._status_soon, bus)
        try:
            with LinuxKernel() as kernel:
                self._kernel = kernel
                self._engine = Engine(
                    kernel=kernel,
                    journal=Journal(DirectoryStore(JOURNAL_DIRECTORY)),
                    config=self._config,
                    observer=DaemonObserver(bus, self._operations, partial(self._news, bus)),
                )
                await self._engine.start()
                bus.export(self._engine)
                await bus.own_name()
                self._manager.ready()
                self._update_status(bus)
                log.info("nvmeofd %s is ready", __version__)
                source = EngineSource(self._engine, self._operations)
                self._exporter = Exporter(source)
                self._exporter.use(self._config.metrics_file)
                reload = partial(self._reload, bus, self._engine, source, self._exporter)
                loop.add_signal_handler(signal.SIGHUP, reload)
                if reload_wanted.is_set():
                    reload()
                return await self._serve(bus, self._engine, self._exporter)
        finally:
            await bus.close()

    async def _serve(self, bus: BusService, engine: Engine, exporter: Exporter) -> int:
        watchdog = asyncio.create_task(self._tick(exporter))
        stopped = asyncio.create_task(self._stop.wait())
        waiting: list[asyncio.Future[Any]] = [stopped, bus.lost]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        self._manager.stopping()
        if bus.lost.done():
            log.critical("the bus is lost: %s", bus.lost.result())
        else:
            log.info("stopping; mounts and connections stay")
        held = await engine.drain(STOP_SECONDS)
        await bus.close()
        watchdog.cancel()
        stopped.cancel()
        giving_up = [self._giving_up] if self._giving_up is not None else []
        await asyncio.gather(watchdog, stopped, *giving_up, return_exceptions=True)
        removed = await exporter.close(REMOVE_SECONDS)
        status = 1 if bus.lost.done() else 0
        for job in held:
            # What it was doing is in the journal for the next start.
            log.error("%s: still held by the kernel in step %s, leaving it behind", job, job.step)
        if not held:
            await engine.close()
        if held or not removed:
            # Nothing ends a thread that the kernel holds, and waiting for it would hold up a shutdown.
            self._leave(status)
        return status

    def _leave(self, status: int) -> NoReturn:
        """End although the kernel holds threads: the process is not over before they are, so another one stands in."""
        if self._manager.present:
            try:
                stand_in = StandIn(status)
                self._manager.replace_main(stand_in.pid)
                stand_in.end()
            except (OSError, ValueError, SubprocessError) as error:
                log.error("the service manager will wait for what the kernel holds: %s", error)
        sys.stderr.flush()
        os._exit(status)

    def _host_stops(self) -> None:
        self._giving_up = asyncio.ensure_future(self._give_up())

    async def _give_up(self) -> None:
        """At shutdown: paths that are dead, or die now, are given up soon, or unmounting would wait for them."""
        if self._engine is None or self._kernel is None:
            return
        try:
            if not await self._kernel.host_is_stopping():
                return
            for controller in self._engine.own_controllers():
                self._kernel.limit_loss(controller, SHUTDOWN_LOSS_SECONDS)
                if not controller.live:
                    log.warning(
                        "the host shuts down: giving up %s soon, which is %s",
                        controller.name,
                        controller.state,
                        extra=logging.about(nqn=controller.nqn),
                    )
        except (OSError, CommandError) as error:
            log.warning("cannot have dead paths given up: %s", error)

    async def _tick(self, exporter: Exporter) -> None:
        """The one thing that wakes an idle daemon.

        Signs of life come from the loop itself: a loop that hangs is restarted.
        """
        interval = self._manager.watchdog_interval
        while True:
            if interval is not None:
                self._manager.watchdog()
            exporter.tick()
            await asyncio.sleep(interval or TICK)

    def _reload(self, bus: BusService, engine: Engine, source: EngineSource, exporter: Exporter) -> None:
        self._manager.reloading()
        try:
            self._config = self._load()
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)
            log.error("the configuration stays as it was")
            self._complaint = f"; the configuration stays as it was: {error}"
            source.config_valid = False
            exporter.changed()
        else:
            source.config_valid = True
            log.setLevel(self._config.log_level)
            engine.reconfigure(self._config)
            exporter.use(self._config.metrics_file)
            self._complaint = ""
            log.info("the configuration is loaded again")
        self._update_status(bus)
        self._manager.ready()

    def _news(self, bus: BusService) -> None:
        """They come in bursts."""
        if self._exporter is not None:
            self._exporter.changed()
        self._status_soon(bus)

    def _status_soon(self, bus: BusService) -> None:
        if self._status_timer is None and not self._stop.is_set():
            self._status_timer = asyncio.get_running_loop().call_later(STATUS_DELAY, self._update_status, bus)

    def _update_status(self, bus: BusService) -> None:
        self._status_timer = None
        if self._engine is None:
            return
        volumes, jobs = len(self._engine.volumes), len(self._engine.jobs)
        self._manager.status(f"Volumes: {volumes}, subsystems: {bus.subsystem_count}, jobs: {jobs}{self._complaint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="nvmeofd",
        description="Stage and unstage NVMe over Fabrics volumes on request over D-Bus.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"nvmeofd {__version__}")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check-config",
        nargs="*",
        metavar="FILE",
        help="say what is wrong in the configuration, or in these files, and exit: 0 if nothing is",
    )
    instead.add_argument("--show-config", action="store_true", help="show the configuration that would count, and exit")
    options = parser.parse_args(arguments)
    if options.check_config is not None or options.show_config:
        return _look_at_config([Path(name) for name in options.check_config or ()], show=options.show_config)
    logging.setup(INFO)
    if os.geteuid() != 0:
        log.critical("nvmeofd must run as root; start it with: systemctl start nvmeofd")
        return 1
    manager = ServiceManager()
    # children must not talk to the service manager
    os.environ.pop("NOTIFY_SOCKET", None)
    try:
        config = Config.load()
        log.setLevel(config.log_level)

        async def run() -> int:
            return await Daemon(config, Config.load, manager).run()

        return asyncio.run(run())
    except ConfigError as error:
        for problem in error.problems:
            log.critical("%s", problem)
        manager.status(f"Not started: {error}")
        return EX_CONFIG
    except (BusLost, NameTaken) as error:
        log.critical("%s", error)
    except OSError as error:
        log.critical("cannot start without a complete picture of the host: %s", error)
    finally:
        manager.close()
    return 1


def _look_at_config(files: list[Path], *, show: bool) -> int:
    """Check the configuration and perhaps show it; returns the exit status."""
    try:
        config = Config.load(files or None)
    except ConfigError as error:
        _print(sys.stderr, "\n".join(error.problems) + "\n")
        return 1
    if show:
        _print(sys.stdout, effective(config))
    return 0


def _print(stream: TextIO, text: str) -> None:
    """Names of files can be what the terminal has no characters for."""
    stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
