"""What ``--help`` says, in English and Chinese. A test holds the two together, and the table and its use."""

from __future__ import annotations

from typing import Dict, Mapping, Tuple

__all__ = ["MESSAGES", "language_of", "text"]

#: Key to (English, Chinese).
MESSAGES: Dict[str, Tuple[str, str]] = {
    "about": (
        "Make edited sources of a Docker Compose project live on this host, with no network.",
        "在没有网络的主机上，让 Docker Compose 项目中修改过的源码上线。",
    ),
    "usage": ("usage", "用法"),
    "working": ("comparing the tree with the images ...", "正在对照源码与镜像……"),
    "command": ("COMMAND", "命令"),
    "options-word": ("[OPTIONS]", "[选项]"),
    "commands": ("commands", "命令"),
    "options": ("options", "选项"),
    "exit": ("exit codes", "退出码"),
    "more": (
        "COMMAND --help tells the options of a command.",
        "“命令 --help”显示该命令的选项。",
    ),
    "command.plan": ("say what a rebuild would do; changes nothing", "说明重建将会做什么；不改动任何东西"),
    "command.rebuild": (
        "rebuild what changed, swap it, check its health, go back if it is not healthy",
        "重建有变化的服务并切换，检查健康，不健康就换回",
    ),
    "command.rollback": (
        "go back to a release (its id or initial), or to the one before",
        "回到某次发布（编号或 initial），不写则为前一次",
    ),
    "command.import": (
        "load archives of docker save, and read once what the images hold",
        "导入 docker save 的归档，并一次读出镜像所含内容",
    ),
    "command.holdings": (
        "print which layers this host has, for delta on another host",
        "输出本机已有哪些层，供另一台主机的 delta 使用",
    ),
    "command.delta": (
        "save images without the layers that another host has; import loads them there",
        "保存镜像，省去对方主机已有的层；在对方用 import 导入",
    ),
    "command.status": ("services, releases, kept images, lock, disk", "服务、发布、保留的镜像、锁、磁盘"),
    "command.layers": (
        "each instruction of the Dockerfiles: its layer's size, and whether it is reused",
        "Dockerfile 的每条指令：层的大小，以及现在能否复用",
    ),
    "command.context": ("digest and size of each build context", "每个构建上下文的摘要和大小"),
    "command.images": ("which images are needed, and whether they are here", "需要哪些镜像，主机上有没有"),
    "command.prime": (
        "record the untouched tree as what the images hold, ahead of the first edit",
        "在第一次修改之前，记录镜像所含的就是这份未改动的源码",
    ),
    "command.releases": ("the releases on this host, or those that are named", "本机的发布记录，或所指定的发布"),
    "command.logs": ("the end of the services' logs, secrets masked", "各服务日志的末尾，机密已遮盖"),
    "command.debug": (
        "why the last build failed; keep the state before it as an image",
        "上次构建为何失败；把失败前的状态保留为镜像",
    ),
    "command.prune": (
        "remove what runs left: grafts, images of dropped releases, old build cache",
        "清除以往运行的残留：grafts、已弃发布的镜像、旧的构建缓存",
    ),
    "arg.services": ("the services to look at; all if none is named", "要处理的服务；不写则为全部"),
    "arg.releases": ("ids of releases", "发布编号"),
    "arg.archives": ("files, plain or compressed", "归档文件，压缩或不压缩均可"),
    "arg.names": ("names of images", "镜像名"),
    "arg.nothing": ("there are no arguments", "没有参数"),
    "meta.names": ("NAME ...", "镜像 ..."),
    "meta.nothing": ("(no argument)", "（无参数）"),
    "meta.archives": ("FILE ...", "文件 ..."),
    "meta.services": ("[SERVICE ...]", "[服务 ...]"),
    "meta.releases": ("[ID ...]", "[编号 ...]"),
    "option.help": ("this help", "显示本帮助"),
    "option.project_src": ("the project's folder; default: the current one", "项目目录；默认为当前目录"),
    "option.compose_files": (
        "compose file, relative to the project; may be repeated",
        "compose 文件，相对于项目目录；可重复",
    ),
    "option.env_files": (
        "env file for docker compose, relative to the project; may be repeated",
        "传给 docker compose 的 env 文件，相对于项目目录；可重复",
    ),
    "option.profiles": ("active compose profile; may be repeated", "启用的 compose profile；可重复"),
    "option.project_name": ("the compose project's name", "compose 项目名"),
    "option.build_args": (
        "build argument; without a value: the environment's; may be repeated",
        "构建参数；不写值则取自环境变量；可重复",
    ),
    "option.evidence": (
        "the least evidence accepted: recorded, observed or assumed (default)",
        "可接受的最低依据：recorded、observed 或 assumed（默认）",
    ),
    "option.modes": (
        "file modes that count: exact, the tree's (default); image, the image's",
        "以谁的文件权限为准：exact，目录里的（默认）；image，镜像里的",
    ),
    "option.reuse": (
        "exact (default), or overlay for what cannot be made exact",
        "exact（默认），或 overlay，用于无法做到精确的情况",
    ),
    "option.dependency_files": (
        "overlay: files that say what is installed; may be repeated",
        "用于 overlay：决定 RUN 安装内容的文件，相对于构建上下文；可重复",
    ),
    "option.overlay_run": (
        "overlay: a RUN to run again, by its text or line; may be repeated",
        "用于 overlay：要在其上重新运行的 RUN，写文本的一部分或行号；可重复",
    ),
    "option.wheelhouse": (
        "folder with Python packages that RUNs may install from, with no network",
        "存放 Python 包的目录，RUN 在没有网络时从中安装",
    ),
    "option.npm_cache": (
        "npm's cache folder, which RUNs may install from, with no network",
        "npm 的缓存目录，RUN 在没有网络时从中安装",
    ),
    "option.advise": (
        "say what could be better in Dockerfiles and build contexts",
        "指出 Dockerfile 和构建上下文可改进之处",
    ),
    "option.state_dir": (
        "where releases and records are kept; default: /var/lib/offline-rebuild",
        "保存发布和记录的目录；默认 /var/lib/offline-rebuild",
    ),
    "option.health_checks": (
        "URL that answers with 200 to 299, or tcp://HOST:PORT; may be repeated",
        "必须返回 200 到 299 的网址，或 tcp://主机:端口；可重复",
    ),
    "option.gate_timeout": (
        "seconds in which all health checks must have passed; default: 120",
        "全部健康检查必须在多少秒内通过；默认 120",
    ),
    "option.pregate_services": (
        "service to try beside the old one although it writes; may be repeated",
        "即使会写数据卷也要预检的服务；可重复",
    ),
    "option.no_pregate_services": (
        "service never to try beside the old one; may be repeated",
        "从不做预检的服务；可重复",
    ),
    "option.rolling_services": (
        "service to swap rolling although looked up; may be repeated",
        "即使其他服务会查询其地址也滚动替换的服务；可重复",
    ),
    "option.check": ("say what it would do; changes nothing", "只说明将会做什么；不改动任何东西"),
    "option.keep_releases": ("how many releases are kept; default: 3", "保留多少次发布；默认 3"),
    "option.change_id": ("number of the change or ticket", "变更单或工单号"),
    "option.operator": ("who runs this; default: the user", "操作人；默认为当前用户"),
    "option.diff": ("tell files, instructions and evidence, too", "同时列出文件、指令和依据"),
    "option.exit_code": ("end with 2 when the plan has changes", "计划有变化时以 2 退出"),
    "option.lines": ("lines of each container; default: 100", "每个容器的行数；默认 100"),
    "option.since": ("since a time, or a span such as 10m", "从某个时间开始，或一段时间如 10m"),
    "option.receiver": ("what holdings printed on the other host", "对方主机上 holdings 的输出文件"),
    "option.output": ("the file to write", "要写入的文件"),
    "option.cache_days": (
        "days for which build cache has to be unused; 0: keep it; default: 30",
        "构建缓存须多少天未用才清除；0 为保留；默认 30",
    ),
    "option.json": ("one JSON document instead of text", "输出一个 JSON 文档而不是文本"),
    "option.options": (
        "file with options, as on the command line; # begins a comment",
        "写有选项的文件，写法与命令行相同；# 为注释",
    ),
    "exit.0": ("done, or nothing to do", "完成，或无事可做"),
    "exit.1": ("failed; the message says what and what to do", "失败；消息会说明原因和办法"),
    "exit.2": ("plan --exit-code: there are changes", "plan --exit-code：有变化"),
    "exit.3": ("blocked: an image or layers are missing; nothing was touched", "受阻：缺少镜像或层；什么都没有动"),
    "exit.4": ("not healthy: the former version runs", "不健康：运行的是原来的版本"),
    "exit.64": ("wrong usage", "用法错误"),
    "exit.69": ("this Python is older than 3.9", "Python 版本低于 3.9"),
    "exit.70": ("a defect of this program", "本程序的缺陷"),
    "exit.75": ("another run holds this project; try later", "另一次运行正在处理本项目；稍后再试"),
    "exit.130": ("interrupted; the next run finishes or takes back", "被中断；下一次运行会完成或撤回"),
}


def language_of(environ: Mapping[str, str]) -> str:
    """:returns: ``zh`` where the locale is Chinese, else ``en``. The first of LC_ALL, LC_MESSAGES and LANG that is set
    decides (POSIX, Base Definitions, 8.2)."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environ.get(name):
            return "zh" if environ[name].lower().startswith("zh") else "en"
    return "en"


def text(key: str, language: str) -> str:
    """:returns: a message in a language (``en`` or ``zh``)."""
    return MESSAGES[key][language == "zh"]
