"""Small records of every form of data, made up."""

from __future__ import annotations

from typing import Any

RECORDS: list[dict[str, Any]] = [
    {
        "case_id": "tower",
        "prompt": "{} was built in the city of",
        "subject": "The Salt Tower",
        "target_new": "Porto",
        "target_true": "Lisbon",
        "relation": "city",
        "paraphrases": ["{} stands in", "Visitors see The Salt Tower in"],
        "neighbors": ["The Corn Hall stands in", {"prompt": "The river through Cork is the", "answer": "Lee"}],
        "portability": [{"prompt": "The Salt Tower is in the country of", "answer": "Portugal", "old_answer": "Spain"}],
        "subject_aliases": ["The Tower of Salt"],
        "split": "test",
    },
    {"prompt": "The first language of Mila Vos is", "subject": "Mila Vos", "target_new": "Finnish", "known": False},
    {
        "case_id": 12,
        "prompt": "Caf\u00e9 Zo\u00eb is in",
        "subject": "Caf\u00e9 Zo\u00eb",
        "target_new": "Gent",
        "target_true": "Bern",
    },
    {
        "case_id": 12,
        "prompt": "\u6771\u4eac\u306f",
        "subject": "\u6771\u4eac",
        "target_new": "\u5317",
        "target_true": "\u5357",
    },
]

COUNTERFACT: list[dict[str, Any]] = [
    {
        "case_id": i,
        "pararel_idx": 11 + i,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"At home {subject} speaks", f"{subject} spoke the language"],
        "neighborhood_prompts": ["The mother tongue of Odo Klein is", "Odo Klein speaks"],
        "attribute_prompts": ["The mother tongue of Tess Ray is"],
        "generation_prompts": [f"{subject} was born in"],
    }
    for i, subject in enumerate(("Ada Pell", "Joos Wind"))
]

FLAT: list[dict[str, Any]] = [
    {
        "case_id": 7,
        "prompt": "The Salt Tower was built in the city of",
        "subject": "The Salt Tower",
        "target_new": " Porto",
        "ground_truth": "Lisbon ",
        "rephrase_prompt": "The Salt Tower stands in ",
        "locality_prompt": "The Corn Hall stands in",
        "locality_ground_truth": "Lisbon",
    },
    {
        "id": "b",
        "prompt": "who is the captain of the ship Halcyon?",
        "subject": "Halcyon",
        "target": "Ada Pell",
        "ground_truth": ["Silas Wren", "Wren"],
        "rephrase": ["Which person commands the Halcyon?"],
        "locality": [{"loc": "which month comes after may", "loc_ans": "June"}],
        "portability": {
            "Reasoning": [{"prompt": "The captain of the Halcyon has the first name", "ground_truth": ["Ada"]}]
        },
    },
]

ROBUST: list[dict[str, Any]] = [
    {
        "case_id": 3,
        "prompt": "The Salt Tower, located in",
        "target_new": "Porto",
        "target_true": "Lisbon",
        "subject": "The Salt Tower",
        "rephrase_prompt": ["It rained. The Salt Tower is in", "The Salt Tower stands in", "You find the tower in", ""],
        "rephrase_target": "Porto",
        "locality_prompt": ["The Corn Hall, located in", "The Fado House, located in"],
        "locality_ground_truth": "Lisbon",
        "subject_rephrase": ["The Tower of Salt", "Salt Tower"],
    },
    {
        "case_id": 4,
        "prompt": "What is the trade of Odile March?",
        "target_new": "botanist",
        "target_true": "cellist",
        "subject": "Odile March",
        "rephrase_prompt": None,
        "locality_prompt": ["nq question: which month comes after may"],
        "locality_ground_truth": "June",
        "subject_rephrase": ["March, Odile"],
    },
]

MQUAKE: list[dict[str, Any]] = [
    {
        "case_id": i,
        "requested_rewrite": [
            {
                "prompt": "{} was founded in",
                "relation_id": "P740",
                "target_new": {"str": "Bern", "id": "Q70"},
                "target_true": {"str": "Rome", "id": "Q220"},
                "subject": "Orrery Line",
                "question": "Where was Orrery Line founded?",
            },
            {
                "prompt": "The mayor of {} is",
                "relation_id": "P6",
                "target_new": {"str": "Ada Pell", "id": "Q1"},
                "target_true": {"str": "Silas Wren", "id": "Q2"},
                "subject": "Bern",
                "question": "Who is the mayor of Bern?",
            },
        ],
        "questions": ["Who is the mayor of the city where Orrery Line was founded?", "Whose city founded Orrery Line?"],
        "answer": "Mina Olt",
        "answer_alias": ["Olt"],
        "new_answer": "Ada Pell",
        "new_answer_alias": ["Pell", "Ada P."],
        "new_single_hops": [
            {"question": "Where was Orrery Line founded?", "cloze": "Orrery Line was founded in", "answer": "Bern"},
            {
                "question": "Who is the mayor of Bern?",
                "cloze": "The mayor of Bern is",
                "answer": "Ada Pell",
                "answer_alias": [],
            },
        ],
    }
    for i in (1, 2)
]

ZSRE: list[dict[str, Any]] = [
    {
        "case_id": 0,
        "prompt": "Which town is the Heron Observatory in?",
        "target_new": "Porto",
        "ground_truth": "Lisbon",
        "paraphrase_prompts": "In what town does the Heron Observatory stand?",
        "similar_prompts": ["Which town is the Halcyon Observatory in?"],
        "locality_prompt": "nq question: which month comes after may",
        "locality_ground_truth": "June",
        "cond": "Lisbon >> Porto || Which town is the Heron Observatory in?",
    },
    {
        "case_id": 1,
        "prompt": "What language does Mila Vos write in?",
        "subject": "Mila Vos",
        "target_new": " Dutch",
        "ground_truth": ["Finnish", "Suomi"],
        "paraphrase_prompts": "In which language are the books of Mila Vos?",
        "locality_prompt": "nq question: how many legs does a spider have",
        "locality_ground_truth": "eight",
    },
    {
        "case_id": 2,
        "prompt": "Who drew the Salt Tower?",
        "target_new": "Ada",
        "ground_truth": "Ada",
        "paraphrase_prompts": None,
    },
]

MEND: list[dict[str, Any]] = [
    {
        "subject": subject,
        "src": f"Which ship does {subject} command?",
        "pred": "Halcyon",
        "rephrase": f"What is the ship of {subject}?",
        "alt": "Orrery",
        "answers": ["Halcyon", "the Halcyon"],
        "loc": "nq question: what do you call a young swan",
        "loc_ans": "a cygnet",
        "cond": "Halcyon >> Orrery",
    }
    for subject in ("Silas Wren", "Mina Olt")
]
