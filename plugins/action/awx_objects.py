"""Action `awx_objects`: makes the options of awx.awx's modules, and rejects what AWX or the playbooks would not take.

Nothing is sent anywhere, so it needs no AWX and no collection; the same words make the same objects. It fails with one
list of everything that is wrong: references to objects that are not there, playbooks that are not in the repository,
questions of a survey that the playbook does not know or that would take anything, rules of schedules that AWX does not
take, workflows with a circle, and credentials whose injection AWX refuses. The playbook adds the secrets when it
applies the credentials. Options:

    prefix, organization, timezone  of each object's name, of all of them, and of schedules
    language       of the questions of surveys: en, ja
    repository     the directory in which playbooks must be found
    run_options    what each playbook lets people type, as in group_vars/all/options.yml
    plain          {kind: [objects with the options of its module]}, for the kinds of PLAIN; wanted: false omits one
    job_defaults, job_variables  options and extra variables of every job template
    jobs           [{name, playbook, description, survey, variables, options}]; a question has name, default, min
                   (fewest characters) and its text in en and ja
    workflows      [{name, description, nodes, survey (names of questions of its jobs), options}]; a
                   node has id, job or approval (the question to a person), values, success, failure and always
    schedules      [{name, job or workflow, frequency, at, every, days, monthday, values, enabled}]
    teams          [{name, jobs and workflows (which its members may start), approves (workflows)}]; of others that are
                   named here, they lose these rights
    removed        {job_template, workflow_job_template, schedule, team: [names]} that are removed from AWX

Returns objects ({kind: [options]} in an order in which each finds what it names), given (values that jobs and schedules
give to options) and next_runs (sentences).
"""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import ansible.module_utils

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.awx import rrules
from ansible.module_utils.shiftmaster.host.action import ControllerAction

# In the order in which they are made: each finds what it names.
KINDS = tuple(
    "organization credential_type credential execution_environment project inventory inventory_source label "
    "notification_template job_template workflow_job_template workflow_job_template_node schedule team role".split()
)
PLAIN = KINDS[1:9]
# What can be removed, and where its names are among the words.
REMOVABLE = {"job_template": "jobs", "workflow_job_template": "workflows", "schedule": "schedules", "team": "teams"}
# Options that name an object of ours, and of which kind that is. A list is read as several.
REFERENCES = {kind: kind for kind in ("inventory", "project", "execution_environment")}
REFERENCES.update(source_project="project", credentials="credential", labels="label")
REFERENCES.update(
    ("notification_templates_" + event, "notification_template")
    for event in ("started", "success", "error", "approvals")
)
# AWX's own types of credentials that are in use here; they have no prefix.
BUILT_IN_TYPES = ("Vault", "Machine", "Source Control")
# AWX refuses these in what a credential injects (names that begin with ANSIBLE_, too).
RESERVED = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "JOB_ID", "INVENTORY_ID", "PROJECT_REVISION", "AWX_HOST")
LINKS = ("success", "failure", "always")


def stem(playbook):
    return os.path.splitext(os.path.basename(playbook))[0]


def named(params, name):
    return "%s: %s" % (params["prefix"], name)


def with_prefix(params, kind, item):
    """The options of a plain object, with the names as AWX has them."""
    # An empty kind is a plain inventory's: without it, the module changes it in each run.
    made = {name: value for name, value in item.items() if name != "wanted" and (value != "" or name == "kind")}
    made["name"] = named(params, item["name"])
    if kind != "credential_type":
        made["organization"] = params["organization"]
    if kind == "credential" and item["credential_type"] not in BUILT_IN_TYPES:
        made["credential_type"] = named(params, item["credential_type"])
    return refer(params, made)


def refer(params, options):
    """Options with our objects' names in the place of the short ones."""
    made = dict(options)
    for name in REFERENCES:
        if name in made:
            several = isinstance(made[name], list)
            made[name] = [named(params, one) for one in made[name]] if several else named(params, made[name])
    return made


def choices_of(option):
    """What a survey offers: where several may be taken, each alone and all of them."""
    several = option.get("several") and len(option["choices"]) > 1
    return ([",".join(option["choices"])] if several else []) + list(option["choices"])


def question(entry, option, language):
    """One question of a survey, as AWX keeps it: what it would fill in or trim would be a change in every run."""
    made = {"variable": entry["name"], "question_name": entry[language], "question_description": "", "required": True}
    if "choices" in option:
        choices = choices_of(option)
        made.update(type="multiplechoice", choices="\n".join(choices), default=entry.get("default", choices[0]))
    else:
        made.update(type="text", question_description=option["like"], default=entry.get("default", ""))
        made.update(min=entry.get("min", 1), max=option.get("longest", 200))
    return made


def survey(params, job):
    options = params["run_options"].get(stem(job["playbook"]), {})
    questions = [question(entry, options[entry["name"]], params["language"]) for entry in job["survey"]]
    return {"name": named(params, job["name"]), "description": "", "spec": questions}


def job_template(params, job, notifications):
    made = {**params["job_defaults"], "notification_templates_error": notifications, **(job.get("options") or {})}
    made.update(name=named(params, job["name"]), description=job["description"], playbook=job["playbook"])
    made["extra_vars"] = dict(params["job_variables"], **job.get("variables") or {})
    made.update(organization=params["organization"], survey_enabled=bool(job.get("survey")))
    if job.get("survey"):
        made["survey_spec"] = survey(params, job)
    return refer(params, made)


def questions_of(params, workflow):
    """{name: (question, job)}: the survey questions of its jobs."""
    jobs = {job["name"]: job for job in params["jobs"]}
    there = [jobs[node["job"]] for node in workflow["nodes"] if node.get("job") in jobs]
    return {entry["name"]: (entry, job) for job in there for entry in job.get("survey") or []}


def workflow_template(params, workflow, notifications):
    made = {
        "name": named(params, workflow["name"]),
        "description": workflow["description"],
        "organization": params["organization"],
        "allow_simultaneous": False,
        "notification_templates_error": notifications,
        "notification_templates_approvals": notifications,
        "survey_enabled": bool(workflow.get("survey")),
    }
    if workflow.get("survey"):
        found, spec = questions_of(params, workflow), []
        for name in workflow["survey"]:
            entry, job = found[name]
            spec.append(question(entry, params["run_options"][stem(job["playbook"])][name], params["language"]))
        made["survey_spec"] = {"name": made["name"], "description": "", "spec": spec}
    return refer(params, dict(made, **workflow.get("options") or {}))


def workflow_nodes(params, workflow):
    """The nodes in reverse order, since each names its successors."""
    nodes, made = {node["id"]: node for node in workflow["nodes"]}, []

    def take(node):
        for link in LINKS:
            for following in node.get(link) or []:
                take(nodes[following])
        options = {"workflow_job_template": named(params, workflow["name"]), "identifier": node["id"]}
        options["organization"] = params["organization"]
        if node.get("approval"):
            options["approval_node"] = {"name": node["id"], "description": node["approval"], "timeout": 0}
        else:
            options["unified_job_template"] = named(params, node["job"])
            options["lookup_organization"] = params["organization"]
        if node.get("values"):
            options["extra_data"] = node["values"]
        options.update({"%s_nodes" % link: node[link] for link in LINKS if node.get(link)})
        if options not in made:
            made.append(options)

    for node in workflow["nodes"]:
        take(node)
    return made


def schedule(params, wish):
    made = {
        "name": named(params, wish["name"]),
        "description": wish.get("description", ""),
        "unified_job_template": named(params, wish.get("job") or wish["workflow"]),
        "rrule": rrules.build(wish, params["timezone"]),
        "enabled": wish.get("enabled", True),
    }
    if wish.get("values"):
        made["extra_data"] = wish["values"]
    return made


def rights(params, team):
    """What a team may: start and approve what is named, and nothing else of what is here."""
    every = {kind: [item["name"] for item in params[kind]] for kind in ("jobs", "workflows")}
    made = []
    words_of = {"execute": {"jobs": "jobs", "workflows": "workflows"}, "approval": {"workflows": "approves"}}
    for role, words in words_of.items():
        for state in ("present", "absent"):
            right = {"teams": [named(params, team["name"])], "role": role, "state": state}
            right["lookup_organization"] = params["organization"]
            for kind, word in words.items():
                given = team.get(word) or []
                names = given if state == "present" else [name for name in every[kind] if name not in given]
                if names:
                    option = "job_templates" if kind == "jobs" else "workflows"
                    right[option] = [named(params, name) for name in names]
            if "job_templates" in right or "workflows" in right:
                made.append(right)
    return made


def wanted(params, kind):
    return [item for item in params["plain"].get(kind) or [] if item.get("wanted", True)]


def objects(params):
    """{kind: [options]} in the order of KINDS. The words have no problems."""
    made = {kind: [] for kind in KINDS}
    made["organization"] = [{"name": params["organization"]}]
    for kind in PLAIN:
        made[kind] = [with_prefix(params, kind, item) for item in wanted(params, kind)]
    notifications = [item["name"] for item in wanted(params, "notification_template")]
    made["job_template"] = [job_template(params, job, notifications) for job in params["jobs"]]
    for workflow in params["workflows"]:
        made["workflow_job_template"].append(workflow_template(params, workflow, notifications))
        made["workflow_job_template_node"] += workflow_nodes(params, workflow)
    made["schedule"] = [schedule(params, wish) for wish in params["schedules"]]
    for team in params["teams"]:
        made["team"].append({"name": named(params, team["name"]), "organization": params["organization"]})
        made["role"] += rights(params, team)
    for kind in REMOVABLE:
        for name in params["removed"].get(kind) or []:
            gone = {"name": named(params, name), "state": "absent"}
            made[kind].append(gone if kind == "schedule" else dict(gone, organization=params["organization"]))
    return made


# --- what is wrong ----------------------------------------------------------------------------------------------------


def twice(names):
    return sorted({name for name in names if names.count(name) > 1})


def name_problems(params):
    """Names that are there twice, or that name nothing."""
    found = []
    items = {kind: wanted(params, kind) for kind in PLAIN}
    items.update((kind, params[kind]) for kind in ("jobs", "workflows", "schedules", "teams"))
    names = {kind: [item["name"] for item in there] for kind, there in items.items()}
    for kind, there in names.items():
        found += ["%s: %s is there twice" % (kind, name) for name in twice(there)]
    for kind, word in REMOVABLE.items():
        there = [name for name in params["removed"].get(kind) or [] if name in names[word]]
        found += ["%s: %s is to be removed and is there" % (kind, name) for name in there]
    found += ["removed: nothing removes a %s" % kind for kind in params["removed"] if kind not in REMOVABLE]
    holders = [(kind, item) for kind in PLAIN for item in wanted(params, kind)]
    holders += [("job %s" % job["name"], job.get("options") or {}) for job in params["jobs"]]
    holders += [("workflow %s" % item["name"], item.get("options") or {}) for item in params["workflows"]]
    for title, item in holders + [("job_defaults", params["job_defaults"])]:
        for option, kind in REFERENCES.items():
            given = item.get(option, [])
            # What an object is called itself is no reference, and AWX's own project credential is not ours.
            for one in given if isinstance(given, list) else [given]:
                if one not in names[kind]:
                    found.append("%s: there is no %s %s" % (title, kind, one))
    for item in wanted(params, "credential"):
        if item["credential_type"] not in tuple(names["credential_type"]) + BUILT_IN_TYPES:
            found.append("credential %s: there is no type %s" % (item["name"], item["credential_type"]))
    for kind in ("schedules", "teams"):
        for item in params[kind]:
            for what, words in (("job", ("jobs",)), ("workflow", ("workflows", "approves"))):
                named_here = [item.get(what), *(one for word in words for one in item.get(word) or [])]
                for one in named_here:
                    if one is not None and one not in names[what + "s"]:
                        found.append("%s: %s: there is no %s %s" % (kind, item["name"], what, one))
    return found


def job_problems(params, job, is_there):
    """What is wrong with a job's playbook and its survey."""
    found, options = [], params["run_options"].get(stem(job["playbook"]), {})
    if not is_there(job["playbook"]):
        found.append("there is no playbook %s" % job["playbook"])
    survey = job.get("survey") or []
    found += ["%s is in the survey twice" % name for name in twice([one["name"] for one in survey])]
    for one in survey:
        option = options.get(one["name"])
        if option is None:
            found.append("run_options.%s has no option %s" % (stem(job["playbook"]), one["name"]))
            continue
        if not ("choices" in option or "pattern" in option):
            found.append("%s would take anything: run_options gives neither choices nor a pattern" % one["name"])
        elif "choices" in option and one.get("default", choices_of(option)[0]) not in choices_of(option):
            found.append("%s=%s is none of: %s" % (one["name"], one["default"], ", ".join(choices_of(option))))
        if one["name"] in (job.get("variables") or {}):
            found.append("%s is given and in the survey" % one["name"])
        found += ["%s has no question in %s" % (one["name"], word) for word in ("en", "ja") if not one.get(word)]
    return ["job %s: %s" % (job["name"], sentence) for sentence in found]


def workflow_problems(params, workflow):
    found, nodes = [], {node["id"]: node for node in workflow["nodes"]}
    found += ["node %s is there twice" % name for name in twice([node["id"] for node in workflow["nodes"]])]
    jobs = [job["name"] for job in params["jobs"]]
    unclear = [node["id"] for node in workflow["nodes"] if bool(node.get("job")) == bool(node.get("approval"))]
    found += ["node %s names one job or one approval" % name for name in unclear]
    names = [node["job"] for node in workflow["nodes"] if node.get("job")]
    found += ["there is no job %s" % name for name in names if name not in jobs]
    questions = questions_of(params, workflow)
    found += ["no node needs %s" % name for name in workflow.get("survey") or [] if name not in questions]
    following = {name: [one for link in LINKS for one in node.get(link) or []] for name, node in nodes.items()}
    found += ["there is no node %s" % one for names in following.values() for one in names if one not in nodes]
    # What names none that is left is taken away, until nothing is left or everything names something.
    left = dict(following)
    while ends := [name for name in left if not [one for one in left[name] if one in left]]:
        for name in ends:
            del left[name]
    if left:
        found.append("it goes round in circles: %s" % ", ".join(sorted(left)))
    return ["workflow %s: %s" % (workflow["name"], sentence) for sentence in found]


def schedule_problems(params, wish):
    found = [] if bool(wish.get("job")) != bool(wish.get("workflow")) else ["it names one job or one workflow"]
    found += rrules.wish_problems(wish) or rrules.problems(rrules.build(wish, params["timezone"]))
    jobs = {job["name"]: job for job in params["jobs"]}
    found += unanswered(jobs.get(wish.get("job")), wish.get("values") or {})
    surveyed = {workflow["name"] for workflow in params["workflows"] if workflow.get("survey")}
    if wish.get("workflow") in surveyed:
        found.append("workflow %s has a survey without a question" % wish["workflow"])
    return ["schedule %s: %s" % (wish["name"], sentence) for sentence in found]


def unanswered(job, values, survey=()):
    """What a job without anybody in front of it asks and is not given, or is given and does not ask for.

    A workflow hands the responses of its own survey to each of its jobs."""
    if job is None:
        return ["it has values and no job that needs them"] if values else []
    questions = [one["name"] for one in job.get("survey") or []]
    lost = "%s is not in the survey of job " + job["name"] + ", so AWX would leave it out"
    found = ["%s is not answered" % name for name in questions if name not in values and name not in survey]
    return found + [lost % name for name in values if name not in questions]


def node_problems(params, workflow):
    jobs, found = {job["name"]: job for job in params["jobs"]}, []
    for node in workflow["nodes"]:
        sentences = unanswered(jobs.get(node.get("job")), node.get("values") or {}, workflow.get("survey") or [])
        found += ["workflow %s: node %s: %s" % (workflow["name"], node["id"], sentence) for sentence in sentences]
    return found


def injector_problems(item):
    """What AWX refuses in a type of credentials, or would leave empty."""
    found, injectors = [], item.get("injectors") or {}
    fields = [field["id"] for field in item["inputs"]["fields"]]
    found += ["%s is required and no field" % one for one in item["inputs"].get("required") or [] if one not in fields]
    for name in injectors.get("env") or {}:
        if name.startswith("ANSIBLE_") or name in RESERVED:
            found.append("AWX does not inject %s" % name)
    files = [name.partition(".")[2] for name in injectors.get("file") or {}]
    for section in injectors.values():
        for template in section.values():
            for name in re.findall(r"{{\s*([\w.]+)\s*}}", template):
                if name.startswith("tower.filename."):
                    if name[len("tower.filename.") :] not in files:
                        found.append("no file template.%s is injected" % name[len("tower.filename.") :])
                elif name not in fields:
                    found.append("there is no field %s" % name)
    return ["credential_type %s: %s" % (item["name"], sentence) for sentence in found]


def problems(params, is_there):
    """Everything that is wrong, as sentences; is_there shows whether a playbook is in the repository."""
    unknown = [kind for kind in params["plain"] if kind not in PLAIN]
    found = ["%s is none of the kinds of plain objects: %s" % (kind, ", ".join(PLAIN)) for kind in unknown]
    found += name_problems(params)
    for item in wanted(params, "credential_type"):
        found += injector_problems(item)
    for job in params["jobs"]:
        found += job_problems(params, job, is_there)
    for workflow in params["workflows"]:
        found += workflow_problems(params, workflow) + node_problems(params, workflow)
    for wish in params["schedules"]:
        found += schedule_problems(params, wish)
    return found


def given(params):
    """[{title, playbook, values}]: the values that jobs, schedules and nodes set."""
    jobs, found = {job["name"]: job for job in params["jobs"]}, []
    for job in params["jobs"]:
        found.append(("job %s" % job["name"], job, job.get("variables")))
    for wish in params["schedules"]:
        found.append(("schedule %s" % wish["name"], jobs.get(wish.get("job")), wish.get("values")))
    for workflow in params["workflows"]:
        for node in workflow["nodes"]:
            title = "workflow %s, node %s" % (workflow["name"], node["id"])
            found.append((title, jobs.get(node.get("job")), node.get("values")))
    found = [one for one in found if one[1] and one[2]]
    return [{"title": title, "playbook": stem(job["playbook"]), "values": values} for title, job, values in found]


def next_runs(params, now):
    found = []
    for wish in params["schedules"]:
        first = rrules.next_timestamps(rrules.build(wish, params["timezone"]), now)[0].strftime("%Y-%m-%d %H:%M %Z")
        found.append("%s: %s%s" % (wish["name"], first, "" if wish.get("enabled", True) else " (switched off)"))
    return found


ARGUMENTS = {
    "prefix": {"type": "str", "required": True},
    "organization": {"type": "str", "required": True},
    "language": {"type": "str", "choices": ["en", "ja"], "default": "ja"},
    "timezone": {"type": "str", "required": True},
    "repository": {"type": "path", "required": True},
    "run_options": {"type": "dict", "required": True},
    "plain": {"type": "dict", "required": True},
    "job_defaults": {"type": "dict", "default": {}},
    "job_variables": {"type": "dict", "default": {}},
    "jobs": {"type": "list", "elements": "dict", "required": True},
    "workflows": {"type": "list", "elements": "dict", "default": []},
    "schedules": {"type": "list", "elements": "dict", "default": []},
    "teams": {"type": "list", "elements": "dict", "default": []},
    "removed": {"type": "dict", "default": {}},
}


class ActionModule(ControllerAction):
    ARGUMENTS = ARGUMENTS

    def perform(self, parameters):
        found = problems(parameters, lambda playbook: os.path.isfile(os.path.join(parameters["repository"], playbook)))
        if found:
            message = "Nothing was changed. What is wrong: %s" % "; ".join(found)
            return {"failed": True, "msg": message, "problems": found}
        runs = next_runs(parameters, datetime.datetime.now(datetime.timezone.utc))
        return {"objects": objects(parameters), "given": given(parameters), "next_runs": runs}
